"""Kill commands at random moments, run them again to the end, and compare with what nobody killed."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .process import Outcome, run

TOGETHER = 20
"""Most kills of one run, so that all jobs get their share on a slow machine too."""


@dataclass(frozen=True)
class Job:
    """One kind of long command that a user may lose to a kill, and how to tell that nothing was lost."""

    name: str
    words: tuple[str, ...]
    """Command line; it is given again after a kill, as a user would."""
    output: str
    """Folder or file that it writes."""
    digest: Callable[[Path], str]
    """Fingerprint of `output`; equal to that of a run that nobody killed."""
    intact: Callable[[Path], bool] = lambda output: True
    """Whether what a kill left behind is whole."""
    longest: float = 1.5
    """Seconds after which the latest kill comes."""


def kills(count: int, chance: random.Random, work: Path) -> Outcome:
    """Kill each job in turn until `count` kills are reached."""
    seen, all_jobs = Outcome(), jobs(work)
    wanted = {job.name: _whole(job, work) for job in all_jobs}
    while seen["kills"] < count:
        for job in all_jobs:
            _killed(job, wanted[job.name], count, chance, work, seen)
        print(f"kills {seen['kills']} of {count}", flush=True)
    return seen


def _whole(job: Job, work: Path) -> str:
    code, text = run(list(job.words), work)
    if code:
        raise SystemExit(f"{job.name}: the run that nobody kills failed: {text}")
    fingerprint = job.digest(work / job.output)
    _clear(job, work)
    return fingerprint


def _killed(job: Job, wanted: str, count: int, chance: random.Random, work: Path, seen: Outcome) -> None:
    """Kill one run at random moments until it comes to its end, then compare."""
    code, text, end = None, "", min(count, seen["kills"] + TOGETHER)
    while code is None and seen["kills"] < end:
        code, text = run(list(job.words), work, kill_after=chance.uniform(0.2, job.longest))
        seen["kills"] += code is None
        seen[f"kills while {job.name}"] += code is None
        if code is None and not job.intact(work / job.output):
            seen["wrong: a kill left half an output"] += 1
            print(f"{job.name}: half an output", flush=True)
    if code is None:
        code, text = run(list(job.words), work)
    seen["runs"] += 1
    if code != 0:
        seen["wrong: not resumed"] += 1
        print(f"{job.name}: exit {code}: {text.strip().splitlines()[-1:]}", flush=True)
    elif job.digest(work / job.output) != wanted:
        seen["wrong: other result"] += 1
        print(f"{job.name}: other result", flush=True)
    _clear(job, work)


def _clear(job: Job, work: Path) -> None:
    for path in (work / job.output, work / "cache"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def jobs(work: Path) -> list[Job]:
    """Training, caching of prompt embeddings, fitting, benchmarking, saving and rendering, all of tiny models."""
    from fewstep.families import tiny_moe, wan

    wan.tiny_pipeline().save_pretrained(work / "teacher")
    tiny_moe.tiny("qwen3_moe").save_pretrained(work / "moe")
    (work / "prompts.txt").write_text("".join(f"a cat runs {n} times\n" for n in range(40)), encoding="utf-8")
    sizes = "--tokens 8 --frames 5 --height 32 --width 32 --batch 1 --critic-updates 1 --show 1 --threads 1 --resume"
    train = ["train", "dmd2", "--teacher", "teacher", "--prompts", "prompts.txt", *sizes.split(), "--ema", "0.9"]
    moe = ["--model", "moe", "--task", "moe-latency", "--length", "16", "--new-tokens", "1", "--threads", "1"]
    fit = "fit modes --model moe --task moe-latency --samples 64 --targets 0.5 --size 40 --threads 1 --out fitted"
    made, text = run([*fit.split()[:-1], "saved"], work)
    if made:
        raise SystemExit(f"no method to save: {text}")
    video = ["run", "sgmd", "--model", "teacher", "--untrained", "--prompt", "a cat", "--frames", "5"]
    video += ["--height", "32", "--width", "32", "--threads", "1", "--output", "clip.mp4"]
    train = (*train, "--save-every", "3")
    bench = ("bench", "naee", "--beta", "0.4", *moe, "--repeats", "6")
    return [
        Job("training", (*train, "--steps", "40", "--out", "trained"), "trained", student_weights, longest=2.5),
        Job("caching", (*train, "--steps", "1", "--out", "cached"), "cached", student_weights),
        Job("fitting", tuple(fit.split()), "fitted", method_file),
        Job("benchmarking", bench, "results", row_names, rows_whole),
        Job("rendering", tuple(video), "clip.mp4", any_file, none_or_whole),
    ]


def student_weights(folder: Path) -> str:
    """Hash of the student's weights, by name."""
    whole = hashlib.sha256()
    for file in sorted((folder / "student").rglob("*.safetensors")):
        whole.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return whole.hexdigest()


def method_file(folder: Path) -> str:
    """Content of a saved method, but for the seconds that its fit took."""
    lines = (folder / "fewstep.json").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if '"seconds"' not in line)


def row_names(folder: Path) -> str:
    """Metrics that the last run of a benchmark brought, in order; times differ and do not count."""
    rows = [json.loads(line) for line in (folder / "moe-latency.jsonl").read_text(encoding="utf-8").splitlines()]
    return ",".join(sorted({f"{row['method']}:{row['metric']}" for row in rows}))


def rows_whole(folder: Path) -> bool:
    """Whether every line but an unfinished last one can be read."""
    for file in folder.glob("*.jsonl"):
        for line in file.read_bytes().split(b"\n")[:-1]:
            try:
                json.loads(line)
            except ValueError:
                return False
    return True


def any_file(file: Path) -> str:
    """Number of frames of a video."""
    import imageio.v3

    return str(len(imageio.v3.imread(file, plugin="pyav")))


def none_or_whole(file: Path) -> bool:
    """Whether a video is not there yet, or can be read to its end."""
    if not file.exists():
        return True
    try:
        return int(any_file(file)) > 0
    except Exception:
        return False
