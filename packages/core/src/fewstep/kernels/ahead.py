"""Compilation of Triton kernels to machine code for GPUs that are not here."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import tempfile
import time

from fewstep.cards import import_target

from . import Kernel, Result, Signature

TARGETS = {
    "sm_80": ("cuda", 80, 32, 163),
    "sm_90": ("cuda", 90, 32, 227),
    "sm_120": ("cuda", 120, 32, 99),
    "gfx942": ("hip", "gfx942", 64, 64),
}
"""Name to Triton's backend, architecture, threads of a warp, and KiB of shared memory that one program may use."""


def compile_ahead(kernel: Kernel, target: str) -> Result:
    """Compile every signature of the kernel to machine code for `target`: no spills, shared memory within its limit.

    Raises:
        ValueError: the target is unknown.
    """
    limit, start = known_target(target)[3] * 1024, time.perf_counter()
    if not kernel.signatures:
        return Result(kernel.name, target, True, "has no triton version", 0.0)
    if not importlib.util.find_spec("triton"):
        return Result(kernel.name, target, False, "triton is not installed, which compiles it: pip install triton", 0.0)
    if os.environ.get("TRITON_INTERPRET") == "1":
        return Result(kernel.name, target, False, "TRITON_INTERPRET=1 turns the compiler off: unset it", 0.0)
    usages = []
    for signature in import_target(kernel.signatures)():
        try:
            usages.append(compiled_usage(signature, target))
        except Exception as error:  # compilers fail in many ways; the report says for which signature and how
            detail = f"{signature.name}: {one_line(error)}"
            return Result(kernel.name, target, False, detail, time.perf_counter() - start)
    spilled, shared, registers = (max(usage[key] for usage in usages) for key in ("spilled", "shared", "registers"))
    detail = f"{spilled} spills, {shared / 1024:.1f} KB shared, {registers} registers"
    return Result(kernel.name, target, not spilled and shared <= limit, detail, time.perf_counter() - start)


def compiled_usage(signature: Signature, target: str) -> dict[str, int]:
    """Compile one signature: ``spilled`` (0 if nothing spills), ``shared`` bytes, ``registers`` of a thread."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = signature.function.arg_names
    types = {name: signature.types.get(name, "constexpr") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in signature.aligned}
    source = ASTSource(signature.function, types, dict(signature.constants), attributes)
    options = {"num_warps": signature.warps} | ({"num_stages": signature.stages} if signature.stages else {})
    compiled = triton.compile(source, target=GPUTarget(*known_target(target)[:3]), options=options)
    usage = _amd_usage(compiled.asm["amdgcn"]) if "amdgcn" in compiled.asm else _nvidia_usage(compiled.asm["cubin"])
    return usage | {"shared": compiled.metadata.shared}


def _amd_usage(assembly: str) -> dict[str, int]:
    counts = {key: int(value) for key, value in re.findall(r"\.(\w+_count):\s+(\d+)", assembly)}
    return {"spilled": counts["vgpr_spill_count"] + counts["sgpr_spill_count"], "registers": counts["vgpr_count"]}


def _nvidia_usage(cubin: bytes) -> dict[str, int]:
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    counts = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    # Triton keeps no arrays on the stack, so bytes of stack are spilled registers
    return {"spilled": counts["STACK"] + counts["LOCAL"], "registers": counts["REG"]}


def known_target(target: str) -> tuple:
    """Entry of `TARGETS`.

    Raises:
        ValueError: the target is unknown; names the supported ones.
    """
    if target not in TARGETS:
        raise ValueError(f"unknown compile target {target!r}; supported: {', '.join(TARGETS)}")
    return TARGETS[target]


def one_line(error: Exception) -> str:
    """Type and message of an error, shortened to one line of 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
