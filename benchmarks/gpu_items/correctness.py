"""Kernels, copies on streams, compute-sanitizer and the tests that need a GPU: is what runs on this card right?"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fewstep import plugins
from fewstep.bench.settings import available_cores
from fewstep.families import causal_lm
from fewstep.kernels import Case, Kernel, Result
from fewstep.kernels.check import numerics
from torch import Tensor

from .bench import Bench
from .forks import answers
from .worker import SkipError

ROOT = Path(__file__).resolve().parents[2]
GRADIENT = 1e-3
"""Largest difference of a gradient in fp32 from the specification's, as a share of the largest of the case."""


def kernels(bench: Bench) -> None:
    """Values of every kernel against its specification on this device, and gradients of those that have them."""
    backend, cards = bench.pick("triton", "cpu"), list(plugins.kernels().values())
    loaded = {card.name: card.load() for card in bench.pick(cards, cards[:3])}
    calls = {name: partial(_checked, kernel, backend, bench.device) for name, kernel in loaded.items()}
    for name, found, error in answers(calls, together=bench.pick(min(12, available_cores()), 1)):
        result, gradients = found or (None, None)
        wrong = error or (None if result.ok else result.detail)
        facts = {"found": result.detail, "seconds": result.seconds} if result else {}
        bench.check(f"{name} equals its specification", wrong, **facts)
        if result:
            bench.check(f"gradients of {name}", gradients)


def _checked(kernel: Kernel, backend: str, device: str) -> tuple[Result, str | None]:
    if backend not in kernel.fast:
        return Result(kernel.name, backend, True, f"it has no {backend} version", 0.0), None
    return numerics(kernel, backend, device), _wrong_gradients(kernel, device)


def _wrong_gradients(kernel: Kernel, device: str) -> str | None:
    """What is wrong with the gradients of the public operation in fp32; None too where it has none."""
    module = importlib.import_module(kernel.target.partition(":")[0])
    public = getattr(module, kernel.naive.__name__)
    for case in kernel.cases():
        if any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in case.args):
            continue
        found, expected = (_gradients(public, case.to(device), backend) for backend in (None, "naive"))
        if found is None or expected is None:
            return None
        largest = max(float(other.abs().max()) for other in expected)
        error = max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True))
        if not error <= GRADIENT * largest:
            return f"{case.name}: differ by {error:.1e}, the largest is {largest:.1e}"
    return None


def _gradients(public: Callable[..., Any], case: Case, backend: str | None) -> tuple[Tensor, ...] | None:
    args = tuple(x.detach().requires_grad_() if x.is_floating_point() else x for x in case.args)
    output = public(*args, **case.options, backend=backend)
    parts = (output,) if isinstance(output, Tensor) else tuple(output)
    wanted = [part for part in parts if part.requires_grad]
    if not wanted:
        return None
    finite = sum(part.masked_fill(~part.isfinite(), 0).square().sum() for part in wanted)
    leaves = [x for x in args if x.requires_grad]
    made = torch.autograd.grad(finite, leaves, allow_unused=True)
    return tuple(torch.zeros(1, device=x.device) if g is None else g for g, x in zip(made, leaves, strict=True))


@torch.no_grad()
def streams(bench: Bench) -> None:
    """Decode with blocks and layers that come from the host; the copier of the device against one that waits."""
    from fewstep_slim_infer import SlimInfer
    from fewstep_slim_infer.transfer import copier_for

    fields = {"num_hidden_layers": 4, "hidden_size": bench.pick(512, 64), "max_position_embeddings": 4096}
    model = causal_lm.tiny(**fields).to(bench.device, bench.dtype)
    prompt = causal_lm.tiny_prompt(bench.pick(2000, 150)).to(bench.device)
    method = SlimInfer(
        entry=(1, 2), keep=0.5, decode_keep=0.3, overlap=1.01, offload=True, block=16, unit=4, score="unit_softmax"
    )

    def logits(copier: Any) -> Tensor:
        with method.apply(model) as applied:
            applied.decoder._copier = copier
            first, cache, _ = causal_lm.prefill(model, prompt)
            known = causal_lm.tiny_prompt(bench.pick(48, 4), seed=1).to(bench.device)
            return torch.cat([first, *causal_lm.decode_known(model, known, cache)[0]])

    expected = logits(WaitingCopier(bench.device))
    for turn in range(bench.pick(20, 1)):
        equal = torch.equal(logits(copier_for(torch.device(bench.device))), expected)
        bench.check(f"copies beside the computation, turn {turn + 1}", None if equal else "other logits than in order")


class WaitingCopier:
    """Copies at once; nothing runs beside them."""

    def __init__(self, device: str) -> None:
        self.device = device

    def start(self, copy: Callable[[], None]) -> Callable[[], object]:
        """Copy, with the device idle before and after."""
        for act in (self._wait, copy, self._wait):
            act()
        return self._wait

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def sanitizer(bench: Bench) -> None:
    """Run the smallest case of each kernel under compute-sanitizer; with ``--tiny`` one without it."""
    tool = shutil.which("compute-sanitizer")
    if not tool and not bench.tiny:
        raise SkipError("compute-sanitizer is not on the PATH")
    before = bench.pick([tool or "", "--error-exitcode", "9"], [])
    names = list(plugins.kernels())
    calls = {name: partial(_under, before, name, bench.device) for name in bench.pick(names, names[:1])}
    for name, wrong, error in answers(calls, together=min(12, available_cores())):
        bench.check(f"memory accesses of {name}", wrong or error)


def _under(before: list[str], name: str, device: str) -> str | None:
    command = [*before, sys.executable, "-m", "gpu_items.smallest_case", name, device]
    env = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # else it sees one large block
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1], env=env)
    print(done.stdout, done.stderr)
    return None if done.returncode == 0 else (done.stdout + done.stderr).strip()[-200:].replace("\n", " ")


def gpu_tests(bench: Bench) -> None:
    """Run the tests that are skipped for want of a GPU, where the tests are: wheels do not bring them."""
    files = sorted(ROOT.glob("packages/*/tests/test_*kernels.py"))
    if not files:
        raise SkipError("the tests are not beside this command; the item `kernels` makes the same comparisons")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "on_the_gpu"]
    where = bench.pick([ROOT / "packages"], files[-1:])
    done = subprocess.run([*command, *map(str, where)], capture_output=True, text=True, check=False, cwd=ROOT)
    print(done.stdout, done.stderr)
    last = (done.stdout.strip().splitlines() or ["no output"])[-1].strip("= ")
    bench.check("tests that wait for a GPU", None if done.returncode == 0 else last[:200], found=last[:200])
