"""Configurations of a model by part, from a hub id that is known, a loader's name or a folder; nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import plugins
from ..cards import import_target
from ..data.files import read_text
from ..errors import BadFileError, FewstepError, UnknownNameError, UnsupportedModelError
from ..families import known, masked_lm

PARTS = ("transformer", "vae", "text_encoder")
"""Parts of a pipeline that cost."""
Parts = Mapping[str, Any]
"""Configurations: ``model`` of a language model, or `PARTS` of a pipeline."""


def parts_of(name: str) -> Parts:
    """Configurations of the model that ``--model`` names.

    Raises:
        UnknownNameError: no such model; the message lists those that there are.
        BadFileError: a configuration is missing or damaged.
        UnsupportedModelError: it is of a kind that transformers and diffusers do not have.
    """
    if name in known.names():
        return _resolved(known.parts(name))
    planned = {card.name: card for card in plugins.loaders().values() if card.config}
    if name in planned:
        return _from(import_target(planned[name].config or ""))
    if (folder := Path(name).expanduser()).is_dir():
        return _from(folder)
    raise UnknownNameError(
        f"no configuration of {name!r} is here, and a plan fetches nothing: give the folder of a model, a name "
        f"({', '.join(planned) or 'none is installed'}) or one of {', '.join(known.names())}"
    )


def _from(source: Any) -> Parts:
    """Parts of a folder, of a configuration as a mapping or an object, or of a function that makes one."""
    source = source() if callable(source) and not isinstance(source, type) else source
    if not isinstance(source, Path):
        return _resolved({"model": source})
    if (source / "model_index.json").is_file():
        return _resolved({part: _read(source / part) for part in PARTS if (source / part / "config.json").is_file()})
    config = _read(source)
    kinds = {"AutoencoderKLWan": "vae", "WanTransformer3DModel": "transformer"}
    return _resolved({kinds.get(config.get("_class_name", ""), "model"): config})


def _read(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise BadFileError(f"{folder} is no model folder: it has neither config.json nor model_index.json")
    try:
        config = json.loads(read_text(file))
    except ValueError as error:
        raise BadFileError(f"{file} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise BadFileError(f"{file} is damaged: it holds no JSON object")
    return config


def _resolved(parts: Mapping[str, Any]) -> Parts:
    makers = {"model": _language_model, "vae": _vae}
    try:
        return {part: makers[part](config) if part in makers else config for part, config in parts.items()}
    except (FewstepError, ImportError):
        raise
    except Exception as error:  # transformers and diffusers raise many kinds for a damaged configuration
        raise BadFileError(f"the configuration lacks a size, or has a wrong one: {_line(error)}") from error


def _language_model(config: Any) -> Any:
    """The configuration object of transformers; LLaDA's and Dream's become the stock ones that they are."""
    if not isinstance(config, Mapping):
        return config
    if config.get("model_type") in masked_lm.DIFFUSION:
        return masked_lm.stock_config(config)
    from transformers import CONFIG_MAPPING

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        named = config.get("_class_name") or kind or "a model without model_type"
        raise UnsupportedModelError(f"{named} cannot be planned: transformers has no configuration of that type")
    return CONFIG_MAPPING[kind](**{key: value for key, value in config.items() if key != "model_type"})


def _vae(config: Any) -> Any:
    from ..families.wan_vae_cost import config_of

    return config_of(config)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
