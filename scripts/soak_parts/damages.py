"""Load damaged copies of good model folders through the command line."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import imageio.v3
import numpy as np

from .process import CONTEXT, SECONDS, Outcome, enter, run

TOGETHER = 40
"""Damaged folders that one process loads one after the other."""
PROMPT = "--prompt cat --threads 1"
VIDEO = "--untrained --output out.mp4 --frames 5 --height 16 --width 16"
USES = {
    "llm": f"run gemfilter --filter-layer 2 --keep 0.5 --max-new-tokens 2 {PROMPT}".split(),
    "moe": f"run naee --beta 0.4 --max-new-tokens 2 {PROMPT}".split(),
    "llada": f"run focus-dllm --gen-length 8 {PROMPT}".split(),
    "vae": ["run", "exact-decode", "--input", "clip.mp4", "--output", "decoded.mp4", "--threads", "1"],
    "wan": f"run sgmd {VIDEO} {PROMPT}".split(),
}
"""Command by kind of model."""
ABSURD: list[Any] = [None, -1, 0, 7, 10**6, 10**12, 1e300, "x", "", [], {}, [0], True, "\ud800"]


def damages(count: int, chance: random.Random, work: Path) -> Outcome:
    """Damage `count` folders, load each, and count what came of it."""
    _save_good(work / "good")
    imageio.v3.imwrite(work / "clip.mp4", np.zeros((5, 16, 16, 3), np.uint8), plugin="pyav", codec="libx264", fps=8)
    seen = Outcome()
    for kind in USES:  # otherwise damaged ones would be refused for another reason
        code, text = run([*USES[kind], "--model", str(work / "good" / kind)], work)
        if code:
            raise SystemExit(f"the undamaged {kind} cannot be used: {text}")
    while seen["files"] < count:
        batch = [_damaged(number, chance, work) for number in range(min(TOGETHER, count - seen["files"]))]
        _load_all(batch, work, seen)
        shutil.rmtree(work / "damaged")
        print(f"damages {seen['files']} of {count}", flush=True)
    return seen


def _save_good(good: Path) -> None:
    from fewstep.families import causal_lm, llada_format, masked_lm, tiny_moe, wan, wan_vae

    causal_lm.tiny().save_pretrained(good / "llm")
    tiny_moe.tiny("qwen3_moe").save_pretrained(good / "moe")
    llada_format.save_llada(masked_lm.tiny(), good / "llada")
    for kind in ("llm", "moe", "llada"):
        wan.tiny_pipeline().tokenizer.save_pretrained(good / kind)
    wan_vae.tiny().save_pretrained(good / "vae")
    wan.tiny_pipeline().save_pretrained(good / "wan")


def _damaged(number: int, chance: random.Random, work: Path) -> tuple[str, str, Path]:
    """Kind of model, what was done to it, and its folder."""
    kind = chance.choice(sorted(USES))
    model = work / "damaged" / str(number)
    shutil.copytree(work / "good" / kind, model)
    return kind, damage(model, chance), model


def _load_all(batch: list[tuple[str, str, Path]], work: Path, seen: Outcome) -> None:
    """Load folders one after the other in one process; where it hangs or dies, go on behind that one in another."""
    begun = 0
    while begun < len(batch):
        answers = CONTEXT.SimpleQueue()
        process = CONTEXT.Process(target=_loads, args=(batch[begun:], work, answers))
        process.start()
        for kind, how, model in batch[begun:]:
            begun += 1
            _wait(process, answers)
            if answers.empty():
                _count(seen, kind, how, None, _output(work))
                break
            code, text = answers.get()
            _count(seen, kind, how, code, text)
            seen["wrong: code executed"] += (model.parent / "ran").exists()
        process.join(1)
        process.kill()
        process.join()


def _wait(process: Any, answers: Any) -> None:
    """Wait for an answer, the process's end, or the longest time that a load may take."""
    from multiprocessing.connection import wait

    wait([answers._reader, process.sentinel], timeout=SECONDS)


def _output(work: Path) -> str:
    return (work / "output.log").read_text(encoding="utf-8", errors="replace")


def _count(seen: Outcome, kind: str, how: str, code: int | None, text: str) -> None:
    seen["files"] += 1
    seen["refused" if code == 2 else "used" if code in (0, 1) else "wrong: hung or died"] += 1
    seen["wrong: traceback"] += "Traceback" in text
    seen["unforeseen, in one line"] += "FEWSTEP_TRACEBACK=1" in text
    if code not in (0, 1, 2) or "Traceback" in text or "FEWSTEP_TRACEBACK=1" in text:
        print(f"{kind}, {how}: exit {code}: {text.strip().splitlines()[-1:] or ''}", flush=True)


def _loads(batch: list[tuple[str, str, Path]], work: Path, answers: Any) -> None:
    log = work / "output.log"
    enter(work, log, str(work / "cache"))
    from fewstep.cli import main

    for kind, _, model in batch:
        log.write_text("", encoding="utf-8")
        os.lseek(1, 0, os.SEEK_SET)
        code = main([*USES[kind], "--model", str(model)])
        sys.stdout.flush()
        sys.stderr.flush()
        answers.put((code, _output(work)[-4000:]))
    os._exit(0)


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
