"""Every method on its tiny model on the device, in bf16: identity, undo bit for bit, twice the same, compiled."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from fewstep.bench import gate
from fewstep.bench.settings import available_cores
from fewstep.bench.task import Outcome
from fewstep.families import causal_lm, masked_lm, tiny_moe, wan, wan_vae
from torch import Tensor

from .bench import Bench
from .forks import answers


@dataclass(frozen=True)
class Subject:
    """A method with a tiny model on the CPU, and a call of it that is deterministic for a given model."""

    method: Any
    model: Any
    call: Callable[[Any], Tensor]
    compiles: bool = True
    """False for pipelines, of which nothing is compiled as a whole."""
    chooses: bool = False
    """The output is a choice, which rounding flips: in bf16 it is not compared."""


def methods(bench: Bench) -> None:
    """Check all of them, each in a process of its own; one that fails in any way is a red check."""
    torch.set_num_threads(1)  # threads of this process would be missing in the forked ones
    with tempfile.TemporaryDirectory() as folder:
        subjects = [subject for make in (_slim, _focus, _modes, _vaed, _sgmd) for subject in make(Path(folder), bench)]
        calls = {subject.method.name: partial(_wrong, bench, subject) for subject in subjects}
        for name, wrong, error in answers(calls, together=bench.pick(min(8, available_cores()), 1)):
            for what, found in (wrong or {"runs": error}).items():
                bench.check(f"{name}: {what}", found)


@torch.no_grad()
def _wrong(bench: Bench, subject: Subject) -> dict[str, str | None]:
    """What is wrong, by property: None where it is right."""
    torch.backends.cudnn.allow_tf32 = False  # what is called fp32 here is fp32
    method, model, call = subject.method, subject.model.to(bench.device, bench.dtype), subject.call
    dense = call(model)
    with method.apply(model):
        changed, again = call(model), call(model)
    found = {
        "undone bit for bit": None if torch.equal(call(model), dense) else "another output than before",
        "finite": None if torch.isfinite(changed).all() else "NaN or infinite",
        "twice the same": None if torch.equal(changed, again) else "a second call gives another answer",
    }
    near = _at_identity(method, model, call)
    exact_model = model.to(torch.float32)  # the same numbers
    exact, exact_near = call(exact_model), _at_identity(method, exact_model, call)
    if near is not None and exact_near is not None:
        found["identity"] = _difference(exact_near, exact)
        if not subject.chooses:
            found["identity in bf16"] = _farther(near, dense, exact)
    if subject.compiles:
        with method.apply(exact_model):
            compiled = call(torch.compile(exact_model, backend=bench.pick("inductor", "eager")))
            found["compiled"] = _difference(compiled, call(exact_model))
    return found


def _at_identity(method: Any, model: Any, call: Callable[[Any], Tensor]) -> Tensor | None:
    if (identity := method.identity()) is None:
        return None
    with identity.apply(model):
        return call(model)


def _difference(one: Tensor, other: Tensor) -> str | None:
    outcomes = (Outcome(seconds={}, evidence=tensor.float().cpu()) for tensor in (one, other))
    return gate.difference(*outcomes, "float32")


def _farther(found: Tensor, dense: Tensor, exact: Tensor) -> str | None:
    """Rounding may differ, but must not be larger than that of the unchanged model: twice its norm is allowed."""
    own, usual = ((one.float() - exact).norm().item() for one in (found, dense))
    return None if own <= 2 * usual else f"{own / max(usual, 1e-30):.1f} times as far from fp32 as the unchanged model"


def _slim(folder: Path, bench: Bench) -> Iterator[Subject]:
    if not find_spec("fewstep_slim_infer"):
        return
    from fewstep_slim_infer import SlimInfer

    def logits(model: Any) -> Tensor:
        return model(causal_lm.tiny_prompt(150).to(bench.device), logits_to_keep=1).logits

    method = SlimInfer(entry=(1, 2), keep=0.5, block=16, unit=4, score="dot")
    yield Subject(method, causal_lm.tiny(num_hidden_layers=3), logits)


def _focus(folder: Path, bench: Bench) -> Iterator[Subject]:
    if not find_spec("fewstep_focus_dllm"):
        return
    from fewstep_focus_dllm import DecodingOptions, FocusDLLM
    from fewstep_focus_dllm.generation import current_generate

    def response(model: Any) -> Tensor:
        ids = torch.randint(3, 49, (1, 48), generator=torch.Generator().manual_seed(0)).to(bench.device)
        options = DecodingOptions(gen_length=16, block_length=8, stop_at_eos=False)
        return current_generate(model)(ids, decoding=options).response.float()

    method = FocusDLLM(keep=0.3, keep_floor=0, prompt_block=8, sinks=3, last_dense=1, min_focus=2)
    yield Subject(method, masked_lm.tiny(), response, compiles=not bench.tiny, chooses=True)


def _modes(folder: Path, bench: Bench) -> Iterator[Subject]:
    if not find_spec("fewstep_modes"):
        return
    from fewstep_modes import MoDES

    def logits(model: Any) -> Tensor:
        inputs = {name: value.to(bench.device) for name, value in tiny_moe.tiny_inputs().items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        return model(**inputs, use_cache=False).logits[:, -1]

    point = {"target": 0.5, "tau_text": 0.05, "tau_vision": 0.09}
    method = MoDES(points=(point,), alpha_text=(0.6, 0.4), alpha_vision=(0.7, 0.3))
    model = tiny_moe.tiny(num_hidden_layers=2, layer_types=["full_attention"] * 2)
    yield Subject(method, model, logits, compiles=not bench.tiny)


def _vaed(folder: Path, bench: Bench) -> Iterator[Subject]:
    if not find_spec("fewstep_flash_vaed"):
        return
    from fewstep_flash_vaed import ExactDecode
    from fewstep_flash_vaed.decoder import WanDecoder, decoder_shape, preset
    from fewstep_flash_vaed.method import save_student

    def pixels(vae: Any) -> Tensor:
        inner = getattr(vae, "_orig_mod", vae)
        latents = torch.randn(1, 3, 3, 4, 5, generator=torch.Generator().manual_seed(0))
        return inner.decode(latents.to(bench.device, next(inner.quant_conv.parameters()).dtype)).sample

    vae = wan_vae.tiny()
    yield Subject(ExactDecode(chunk=2), vae, pixels, compiles=not bench.tiny)
    student = WanDecoder(decoder_shape(vae.config, *preset(vae.config)))
    yield Subject(save_student(student, folder / "student", ""), vae, pixels, compiles=not bench.tiny)


def _sgmd(folder: Path, bench: Bench) -> Iterator[Subject]:
    if not find_spec("fewstep_sgmd"):
        return
    from fewstep_sgmd import SGMD

    def latents(pipe: Any) -> Tensor:
        size = {"num_frames": 5, "height": 32, "width": 32, "num_inference_steps": 3, "max_sequence_length": 8}
        return pipe("a cat runs", generator=torch.Generator().manual_seed(0), output_type="latent", **size).frames

    yield Subject(SGMD(), wan.tiny_pipeline(), latents, compiles=False)
