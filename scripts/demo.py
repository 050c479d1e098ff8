"""The main job on the embedded default: a real LLM reads a real long document, dense and with SlimInfer, side by side.

Downloads nothing: the weights come with a package, the document with Python. Under six minutes on two CPU cores.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from fewstep.cli import main

FOLDER = Path("demo")
MODEL = ["--model", "smollm2-135m", "--results", str(FOLDER), "--allow-dirty"]
STEPS = [
    ("Continue a document of 4,096 tokens: how fast, and how close to the dense model?",
     ["bench", "slim-infer", "--task", "continuation", "--length", "4096", "--repeats", "2", *MODEL]),
    ("Find a sentence in a document of 1,536 tokens: is it still found?",
     ["bench", "slim-infer", "--task", "needle", "--length", "1536", "--needles", "4", "--repeats", "1", *MODEL]),
    ("The report",
     ["report", str(FOLDER), "--html", str(FOLDER / "report.html"), "--figures", str(FOLDER)]),
]  # fmt: skip


def demo() -> int:
    """Run the steps; the exit code of the first that fails, or 0."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    for number, (title, words) in enumerate(STEPS, 1):
        print(f"\n[{number}/{len(STEPS)}] {title}\n$ fewstep {' '.join(words)}", flush=True)
        if code := main(words):
            return code
    print(f"\nOpen {FOLDER / 'report.html'} in a browser.")
    return 0


if __name__ == "__main__":
    raise SystemExit(demo())
