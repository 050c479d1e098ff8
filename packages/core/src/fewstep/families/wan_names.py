"""Parameter names of Wan transformers: those of diffusers and those of the original weights ("native"), both ways.

Inside a block the affine norm and a parameter-free one change places: native ``norm3`` is diffusers' ``norm2``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ..errors import BadFileError

_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_IMAGE = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}
_BLOCK = {
    **{f"self_attn.{native}": f"attn1.{name}" for native, name in _ATTENTION.items()},
    **{f"cross_attn.{native}": f"attn2.{name}" for native, name in (_ATTENTION | _IMAGE).items()},
    "norm1": "norm1",
    "norm2": "norm3",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "modulation": "scale_shift_table",
}
_OUTSIDE = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}


class NameTable:
    """Renaming in one direction: the longest module of the table that begins a name is replaced, its tail is kept."""

    def __init__(self, kind: str, block: Mapping[str, str], outside: Mapping[str, str]) -> None:
        """Compile the table.

        Args:
            kind: names that are renamed, in a word for error messages.
            block: modules inside ``blocks.N``.
            outside: modules outside the blocks.
        """
        self.kind, self.block, self.outside = kind, block, outside
        self.pattern = re.compile(rf"(?:(blocks\.\d+\.)({_any(block)})|({_any(outside)}))((?:\..+)?)")

    def __contains__(self, name: str) -> bool:
        return self.pattern.fullmatch(name) is not None

    def __call__(self, name: str) -> str:
        """Rename one parameter or module.

        Raises:
            BadFileError: it is no name of this kind.
        """
        parts = self.pattern.fullmatch(name)
        if parts is None:
            raise BadFileError(f"{name!r} is no {self.kind} name of a Wan transformer")
        block, inside, outside, tail = parts.groups()
        return block + self.block[inside] + tail if block else self.outside[outside] + tail


def _any(names: Iterable[str]) -> str:
    return "|".join(map(re.escape, sorted(names, key=len, reverse=True)))


to_diffusers = NameTable("native", _BLOCK, _OUTSIDE)
"""Native to diffusers: ``blocks.0.self_attn.q.weight`` to ``blocks.0.attn1.to_q.weight``."""
to_native = NameTable("diffusers", *({new: old for old, new in table.items()} for table in (_BLOCK, _OUTSIDE)))
"""Diffusers to native, the inverse of `to_diffusers`."""


_JOINED = {name.replace(".", "_"): name for table in (_BLOCK, _OUTSIDE) for pair in table.items() for name in pair}
"""Modules by their names with underscores for dots, as kohya's trainers write them."""
_KOHYA = re.compile(rf"(?:blocks_(\d+)_)?({_any(_JOINED)})")


def from_kohya(name: str) -> str:
    """A module by its name in kohya's LoRAs: ``blocks_0_self_attn_q`` to ``blocks.0.self_attn.q``.

    Raises:
        BadFileError: it is no module of a Wan transformer.
    """
    parts = _KOHYA.fullmatch(name)
    if parts is None:
        raise BadFileError(f"{name!r} is no module of a Wan transformer; are these weights of another model?")
    block, module = parts.groups()
    return _JOINED[module] if block is None else f"blocks.{block}.{_JOINED[module]}"


def are_native(names: Iterable[str]) -> bool:
    """True for native names, false for those of diffusers; the first name that only one kind has decides."""
    for name in names:
        if (name in to_diffusers) != (name in to_native):
            return name in to_diffusers
    return False
