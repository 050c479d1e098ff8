"""The command line: ``fewstep VERB ...``. Imports nothing heavy: each verb brings what it needs."""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
import threading
import traceback
from dataclasses import dataclass

from ..cards import import_target
from ..errors import FewstepError, UnknownNameError


@dataclass(frozen=True)
class Verb:
    """One verb: where its function is, what it does, and how it is typed."""

    target: str
    """``"module:function"``, called with the words after the verb; returns the exit code."""
    summary: str
    example: str


VERBS = {
    "list": Verb(
        "fewstep.cli.listing:list_cards", "what is installed: methods, models, tasks, recipes, kernels", "fewstep list"
    ),
    "show": Verb(
        "fewstep.cli.show:show", "one of them: fields and their meaning, measured rows", "fewstep show slim-infer"
    ),
    "run": Verb(
        "fewstep.cli.use:run",
        "use a method on your own input",
        "fewstep run slim-infer --model smollm2-135m --prompt-file book.txt --prompt 'Who ...?'",
    ),
    "bench": Verb(
        "fewstep.cli.bench:bench",
        "unchanged model against method, side by side in one run",
        "fewstep bench slim-infer --model smollm2-135m --task needle --length 4096",
    ),
    "plan": Verb(
        "fewstep.cli.plan:plan",
        "what each method is predicted to give here, from the configuration alone",
        "fewstep plan --model Wan-AI/Wan2.1-T2V-14B-Diffusers --device h100",
    ),
    "fit": Verb(
        "fewstep.cli.use:fit",
        "calibrate, search or prune: make a method that fits one model",
        "fewstep fit slim-infer --model ./my-llm --out fitted/",
    ),
    "train": Verb(
        "fewstep.cli.train:train",
        "a recipe: distil a few-step student, or train a model",
        "fewstep train dmd2 --teacher ./my-wan --prompts prompts.txt --steps 2000",
    ),
    "report": Verb(
        "fewstep.cli.publish:report", "measured rows as tables and figures", "fewstep report results/ --html out.html"
    ),
    "export": Verb(
        "fewstep.cli.export:export",
        "write a saved method in a format of other programs",
        "fewstep export student/ --format lightx2v",
    ),
    "kernels": Verb(
        "fewstep.cli.kernels:kernels",
        "check kernels here, compile them for GPUs elsewhere",
        "fewstep kernels --check --compile sm_90",
    ),
    "push": Verb("fewstep.cli.publish:push", "upload a saved method to the hub", "fewstep push fitted/ me/my-llm-slim"),
}
_NO_MEMORY = re.compile("out of memory|allocate memory|multiplication overflow|Storage size calculation overflowed")
"""Said by torch where a tensor does not fit, or could not even be counted."""
INTERRUPTED, CLOSED_PIPE = 130, 141
"""Exit codes that a shell gives for SIGINT and SIGPIPE."""


def main(argv: list[str] | None = None) -> int:
    """Run one command line and return its exit code: 2 for wrong input, with one line on stderr."""
    words = sys.argv[1:] if argv is None else argv
    for name in ("stdout", "stderr"):  # text that a terminal cannot show is replaced; a closed stream is None
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        setattr(sys, name, stream)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    _end_as_ctrl_c()
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # --help
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # the reader is gone, and Python would complain when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except (FewstepError, ValueError, OSError, ImportError) as error:
        _traceback()
        return _say(" ".join(str(error).split()) or type(error).__name__, 2)
    except Exception as error:  # a damaged model may raise anything; a fault of ours shows with the switch
        _traceback()
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            return _say(f"`fewstep {' '.join(words[:2])}` needs more memory than there is: {_sizes(error)}", 2)
        told = " ".join(f"{type(error).__name__}: {error}".split())
        return _say(f"`fewstep {' '.join(words[:2])}` failed: {told[:300]} (FEWSTEP_TRACEBACK=1 shows where)", 2)


def _end_as_ctrl_c() -> None:
    """Let SIGTERM and SIGHUP interrupt like Ctrl-C, so that what is finished is kept."""
    if threading.current_thread() is not threading.main_thread():
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, interrupt)


def _traceback() -> None:
    if os.environ.get("FEWSTEP_TRACEBACK") == "1":
        traceback.print_exc()


def _say(line: str, code: int) -> int:
    print(f"fewstep: {line}", file=sys.stderr)
    return code


def _sizes(error: Exception) -> str:
    """The advice to someone whose numbers are too large, with what was asked for at once where torch says it."""
    asked = re.search(r"allocate (\d+) bytes", str(error))
    once = f"{int(asked[1]) / 2**30:,.1f} GiB were asked for at once; " if asked else ""
    return f"{once}ask for fewer tokens, frames, pixels or samples"


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(version("fewstep-core"))
        return 0
    if words[0] not in VERBS:
        near = difflib.get_close_matches(words[0], VERBS, n=3, cutoff=0.4) or list(VERBS)
        raise UnknownNameError(f"no verb is called {words[0]!r}: did you mean {', '.join(near)}?")
    return import_target(VERBS[words[0]].target)(words[1:])


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(
        f"  {name:{width}}  {verb.summary}\n  {'':{width}}    {verb.example}" for name, verb in VERBS.items()
    )
    return (
        "fewstep: make generative models that you already have cheaper to run\n\n"
        f"usage: fewstep VERB ...\n\n{verbs}\n\n"
        "`fewstep VERB NAME --help` lists all flags with their defaults. FEWSTEP_PLUGINS=a,b loads only these plug-ins."
    )
