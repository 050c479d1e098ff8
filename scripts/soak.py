"""Soak: kills at random moments, damaged files, apply and remove in random order; counts of what went wrong.

``python scripts/soak.py`` runs everything; ``--kills 20 --damages 200 --sequences 20`` a taste of it. Not part of the
tests; it runs nightly. The last lines are the figures, and the exit code is 1 where anything went wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fewstep.testing.cli import PRELOADED

MEMORY = 6 << 30
"""Bytes of address space that a load of a damaged model may take."""
SECONDS = 60
"""Longest that one command may take."""
Outcome = Counter[str]


def command(words: list[str], folder: Path, log: Path) -> None:
    """Run one command line in this (forked) process, with bounded memory, its output in `log`."""
    with open(log, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.chdir(folder)
    sys.argv = ["fewstep", *words]
    from fewstep.cli import main

    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(words: list[str], folder: Path, *, kill_after: float | None = None) -> tuple[int | None, str]:
    """Exit code (None where it was killed or hung) and output of one command."""
    log = folder / "output.log"
    process = CONTEXT.Process(target=command, args=(words, folder, log))
    process.start()
    process.join(SECONDS if kill_after is None else kill_after)
    hung = process.is_alive()
    if hung:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return None if hung else process.exitcode, text


def digest(folder: Path) -> str:
    """Hash of all weights below a folder, by name."""
    whole = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        whole.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
    return whole.hexdigest()


def kills(count: int, chance: random.Random, work: Path) -> Outcome:
    """Kill a training at random moments, resume it, and compare its student with that of a run that nobody killed."""
    from fewstep.families import wan

    wan.tiny_pipeline().save_pretrained(work / "teacher")
    (work / "prompts.txt").write_text("a cat runs\na dog sleeps\n", encoding="utf-8")
    sizes = "--tokens 8 --frames 5 --height 32 --width 32 --batch 1 --critic-updates 1 --show 1 --threads 1"
    words = ["train", "dmd2", "--teacher", str(work / "teacher"), "--prompts", str(work / "prompts.txt")]
    words += [*sizes.split(), "--steps", "60", "--save-every", "3", "--ema", "0.9"]
    code, text = run([*words, "--out", "whole"], work)
    if code:
        raise SystemExit(f"the run that nobody kills failed: {text}")
    wanted, seen = digest(work / "whole" / "student"), Outcome()
    while seen["kills"] < count:
        shutil.rmtree(work / "killed", ignore_errors=True)
        code = None
        while code is None and seen["kills"] < count:
            code, text = run([*words, "--out", "killed", "--resume"], work, kill_after=chance.uniform(0.2, 4.0))
            seen["kills"] += code is None
        if code is None:
            code, text = run([*words, "--out", "killed", "--resume"], work)
        seen["runs"] += 1
        seen["wrong: not resumed"] += code != 0
        seen["wrong: other weights"] += code == 0 and digest(work / "killed" / "student") != wanted
        print(f"kills {seen['kills']} of {count}", flush=True)
    return seen


def damages(count: int, chance: random.Random, work: Path) -> Outcome:
    """Load damaged copies of good folders through the command line."""
    from fewstep.families import causal_lm, llada_format, masked_lm, tiny_moe, wan, wan_vae

    good, seen = work / "good", Outcome()
    causal_lm.tiny().save_pretrained(good / "llm")
    tiny_moe.tiny("qwen3_moe").save_pretrained(good / "moe")
    llada_format.save_llada(masked_lm.tiny(), good / "llada")
    wan_vae.tiny().save_pretrained(good / "vae")
    wan.tiny_pipeline().save_pretrained(good / "wan")
    uses = {
        "llm": ["bench", "lazy-llm", "--task", "needle", "--length", "64", "--needles", "1", "--repeats", "1"],
        "moe": ["bench", "dmt", "--task", "moe-latency", "--length", "16", "--new-tokens", "1", "--repeats", "1"],
        "llada": ["run", "focus-dllm", "--prompt", "hi", "--gen-length", "8"],
        "vae": ["show", "flash-vaed"],
        "wan": ["run", "sgmd", "--prompt", "a cat", "--output", "out.mp4", "--frames", "5"],
    }
    for number in range(count):
        kind = chance.choice(sorted(uses))
        model = work / "damaged"
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(good / kind, model)
        how = damage(model, chance)
        marker = work / "ran"
        code, text = run([*uses[kind], "--model", str(model)], work)
        seen["files"] += 1
        seen["refused" if code == 2 else "used" if code in (0, 1) else "wrong: hung or died"] += 1
        seen["wrong: traceback"] += "Traceback" in text
        seen["wrong: code executed"] += marker.exists()
        seen["unforeseen, in one line"] += "FEWSTEP_TRACEBACK=1" in text
        if code not in (0, 1, 2) or "Traceback" in text or "FEWSTEP_TRACEBACK=1" in text:
            print(f"{kind}, {how}: exit {code}: {text.strip().splitlines()[-1:] or ''}", flush=True)
        if number % 100 == 99:
            print(f"damages {number + 1} of {count}", flush=True)
    return seen


def damage(model: Path, chance: random.Random) -> str:
    """Damage one file of a folder; returns what was done."""
    file = chance.choice(sorted(path for path in model.rglob("*") if path.is_file()))
    content = bytearray(file.read_bytes())
    kind = chance.choice(["flip", "truncate", "field", "field", "nest", "code"])
    if kind == "flip":
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(min(len(content), chance.choice([64, 4096, len(content)])))
            content[at] ^= 1 << chance.randrange(8)
    elif kind == "truncate":
        content = content[: chance.randrange(len(content))]
    elif file.suffix != ".json":
        return damage(model, chance)
    else:
        content = bytearray(_other_json(json.loads(bytes(content)), kind, model, chance).encode())
    file.write_bytes(bytes(content))
    return f"{kind} in {file.relative_to(model)}"


ABSURD: list[Any] = [None, -1, 0, 7, 10**6, 10**12, 1e300, "x", "", [], {}, [0], True, "\ud800"]


def _other_json(value: Any, kind: str, model: Path, chance: random.Random) -> str:
    if kind == "nest":
        return "[" * 100_000 + "]" * 100_000
    if isinstance(value, dict) and kind == "code":
        ran = f"import pathlib; pathlib.Path({str(model.parent / 'ran')!r}).touch()\n"
        for name in ("modeling_x", "configuration_x", "tokenization_x"):
            (model / f"{name}.py").write_text(ran)
        value |= {"auto_map": {"AutoConfig": "configuration_x.X", "AutoModelForCausalLM": "modeling_x.X"}}
        value |= {"model_type": chance.choice(["strange", value.get("model_type")])}
    elif isinstance(value, dict) and value:
        for _ in range(chance.randint(1, 2)):
            value[chance.choice(sorted(value))] = chance.choice(ABSURD)
    return json.dumps(value)


def sequences(count: int, chance: random.Random, work: Path) -> Outcome:
    """Apply and remove methods in random order on one model, and compare outputs and attributes at the end."""
    import torch
    from fewstep import FewstepError
    from fewstep.families import causal_lm
    from fewstep_slim_infer import GemFilter, LazyLLM, SlimInfer

    model, ids = causal_lm.tiny(), causal_lm.tiny_prompt(96)
    methods: list[Any] = [
        SlimInfer(entry=(2, 4), keep=0.5, block=16, unit=4, score="dot"),
        LazyLLM(entry=(2, 4), keep=0.5),
        GemFilter(filter_layer=2, keep=0.5),
    ]
    seen = Outcome()
    with torch.inference_mode():
        dense, names = model(ids).logits, sorted(vars(model.model))
        for _ in range(count):
            applied: list[Any] = []
            for _ in range(chance.randint(1, 6)):
                if applied and chance.random() < 0.5:
                    applied.pop(chance.randrange(len(applied))).remove()
                else:
                    try:
                        applied.append(chance.choice(methods).apply(model))
                    except FewstepError:
                        seen["refused: already applied"] += 1
                model(ids, logits_to_keep=1)
            for one in reversed(applied):
                one.remove()
            seen["sequences"] += 1
            seen["wrong: other output"] += not torch.equal(model(ids).logits, dense)
            seen["wrong: something stays"] += sorted(vars(model.model)) != names
    return seen


PARTS: dict[str, Callable[[int, random.Random, Path], Outcome]] = {
    "kills": kills,
    "damages": damages,
    "sequences": sequences,
}
CONTEXT: Any = multiprocessing.get_context("forkserver")


def main() -> int:
    """Run the parts, print their figures as JSON, and return 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in {"kills": 1000, "damages": 10_000, "sequences": 1000}.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=f"(default: {count})")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    CONTEXT.set_forkserver_preload(PRELOADED)
    wrong = 0
    for name, part in PARTS.items():
        if not getattr(args, name):
            continue
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            os.environ["FEWSTEP_CACHE"] = str(Path(folder) / "cache")
            seen = part(getattr(args, name), random.Random(args.seed), Path(folder))
        wrong += sum(number for what, number in seen.items() if what.startswith("wrong"))
        print(json.dumps({"part": name, "seconds": round(time.perf_counter() - start), **dict(sorted(seen.items()))}))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
