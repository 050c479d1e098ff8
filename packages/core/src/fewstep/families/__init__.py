"""Model families: what fewstep knows about one kind of model, one module each. Imports no torch.

=============  ========================================================================================
module         models
=============  ========================================================================================
`causal_lm`    Llama-like language models with full attention: prefill, decode, KV cache
`masked_lm`    masked diffusion language models (LLaDA, Dream) as stock transformers models
`vlm`          language models that read pictures: modalities of tokens, inputs from pictures and text
`moe`          mixtures of experts, whatever else the model is: sites, exchangeable experts, counting
`wan`          Wan text-to-video pipelines and their transformer: velocity, latents, prompts
`wan_causal`   the same transformer chunk by chunk, with a KV cache (`chunk_cache`); `wan_stream`: endless videos
`wan_vae`      the video VAE of Wan: whole clips to latents and back
=============  ========================================================================================

A method imports the family that it works on. Where only a model is at hand, as in training, `of` finds it by class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

from ..errors import UnsupportedModelError

BY_CLASS: Mapping[str, str] = {
    "AutoencoderKLWan": "wan_vae",
    "WanPipeline": "wan",
    "WanTransformer3DModel": "wan",
}
"""Module by class name of a model or pipeline, for families that are found by a model alone."""
CAUSAL: Mapping[str, str] = {"wan": "wan_causal"}
"""Module by which networks of a family make a video chunk by chunk, by the family's own module."""


class Family(Protocol):
    """Functions of families whose models are changed as a whole."""

    def check(self, model: Any) -> Any:
        """Return the part of `model` that methods change.

        Raises:
            UnsupportedModelError: the model is of another kind; one sentence says what was found and what is supported.
        """

    def tiny(self) -> Any:
        """A random model of the real class, built from code: for mechanics only, no claim about quality."""


class Denoiser(Family, Protocol):
    """Functions of families whose networks are trained by flow matching; `fewstep.train` asks them alone."""

    NEGATIVE: str
    """Default prompt that guidance leads away from."""
    LORA_TARGETS: tuple[str, ...]
    """Endings of the names of the layers that get LoRA adapters by default."""
    KNOWN: Mapping[str, Architecture]
    """Sizes by hub id, for plans that download nothing."""

    def velocity(self, network: Any, noisy: Any, sigma: Any, cond: Any) -> Any:
        """Call the network: velocity ``[B, C, F, H, W]`` at noise levels `sigma` ``[B]``, given conditions."""

    def hidden_tokens(self, network: Any, noisy: Any, sigma: Any, cond: Any, block: int) -> Any:
        """Tokens ``[B, F, S, d]`` after a block (from 0) of the network, by latent frame; later blocks do not run.

        Raises:
            ValueError: there is no such block.
        """

    def encode_prompts(self, pipe: Any, prompts: Sequence[str], tokens: int) -> Any:
        """Conditions ``[B, T, d]`` as the pipeline itself makes them, padding zeroed."""

    def architecture(self, pipe: Any) -> Architecture:
        """Sizes of a loaded pipeline."""

    def architecture_of_folder(self, folder: Any) -> Architecture:
        """Sizes of a pipeline folder, from its configuration files alone."""

    def decode(self, pipe: Any, latents: Any) -> Any:
        """Videos ``[B, F, 3, H, W]`` with values in [0, 1]."""

    def image_latent(self, pipe: Any, latents: Any) -> Any:
        """Latent ``[B, C, 1, H, W]`` of the last frame of a video, as the first of another video would be."""


class CausalDenoiser(Protocol):
    """Functions by which a network makes a video chunk by chunk, with the `chunk_cache` of what it finished."""

    def make_causal(self, network: Any, undo: Any) -> None:
        """Let the other functions work on `network` until `undo` is removed."""

    def velocity(self, network: Any, noisy: Any, sigma: Any, cond: Any, cache: Any) -> Any:
        """Velocity of the chunk that follows what is in `cache`, which stays as it is."""

    def commit(self, network: Any, clean: Any, cond: Any, cache: Any) -> Any:
        """The cache after a finished chunk, without gradient."""


class Architecture(Protocol):
    """Sizes of a denoiser, enough to count what it would take."""

    @property
    def text_width(self) -> int:
        """Width of a prompt embedding."""

    @property
    def blocks(self) -> int:
        """Blocks of the network, among which `hidden_tokens` takes one."""

    def latent(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        """Shape of the latent of one video.

        Raises:
            ValueError: the video does not divide into latents and patches.
        """

    def meta_network(self) -> Any:
        """The network on the meta device."""


def of(model: Any) -> Any:
    """Return the family module of a model or pipeline, found by its class or a base of it.

    Raises:
        UnsupportedModelError: no family has models of that class.
    """
    for cls in type(model).__mro__:
        if cls.__name__ in BY_CLASS:
            return by_name(BY_CLASS[cls.__name__])
    raise UnsupportedModelError(
        f"{type(model).__name__} is of no model family that is found by class; there are {', '.join(BY_CLASS)}"
    )


def unwrapped(model: Any) -> Any:
    """Return the model that a wrapper of ``torch.compile`` or of PEFT runs, or `model` itself.

    What is changed in it holds for calls of the wrapper too.

    Raises:
        UnsupportedModelError: the wrapper puts learned tokens before the prompt, which a model inside knows nothing of.
    """
    while True:
        if "_orig_mod" in getattr(model, "_modules", ()):
            model = model._orig_mod
        elif "PeftModel" in (cls.__name__ for cls in type(model).__mro__):
            if model.active_peft_config.is_prompt_learning:
                raise UnsupportedModelError(
                    f"this {type(model).__name__} puts learned tokens before the prompt ({model.peft_type}): adapters "
                    "that change layers, such as LoRA, are supported"
                )
            model = model.get_base_model()
        else:
            return model


def plain_parameters(network: Any) -> dict[str, Any]:
    """Return the network's own parameters by the names of its class, without those that adapters of PEFT brought."""
    adapted = tuple(f"{name}." for name, module in network.named_modules() if name and hasattr(module, "base_layer"))
    return {
        name.replace("base_layer.", "").replace("_orig_mod.", ""): parameter
        for name, parameter in network.named_parameters()
        if all(name.startswith(f"{prefix}base_layer.") for prefix in adapted if name.startswith(prefix))
    }


def has_fused_adapters(network: Any) -> bool:
    """Tell whether adapters of PEFT that can still be taken back are fused into the weights of `network`."""
    return any(getattr(module, "merged_adapters", ()) for module in network.modules())


def denoiser(model: Any) -> Any:
    """Return the module of a model's family, if it is trained by flow matching.

    Raises:
        UnsupportedModelError: the model is of no family that is found by class, or of one that predicts no velocity.
    """
    family = of(model)
    if not hasattr(family, "velocity"):
        raise UnsupportedModelError(
            f"{type(model).__name__} predicts no velocity, so it cannot be trained or distilled"
        )
    return family


def causal(model: Any) -> Any:
    """Return the module of a model's family that makes videos chunk by chunk; see `CausalDenoiser`.

    Raises:
        UnsupportedModelError: the family has none.
    """
    name = of(model).__name__.rpartition(".")[2]
    if name not in CAUSAL:
        raise UnsupportedModelError(
            f"{type(model).__name__} makes no videos chunk by chunk; models of {', '.join(CAUSAL)} do"
        )
    return by_name(CAUSAL[name])


def denoisers() -> list[Any]:
    """Modules of the families that are trained by flow matching."""
    modules = [by_name(name) for name in dict.fromkeys(BY_CLASS.values())]
    return [module for module in modules if hasattr(module, "velocity")]


def by_name(name: str) -> Any:
    """Return a family module by its name, a value of `BY_CLASS`."""
    return import_module(f".{name}", __name__)
