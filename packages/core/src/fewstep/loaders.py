"""Get a model by name: a plug-in's loader, a local folder, or a hub id."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from . import plugins
from .contract import Loaded, Weights
from .data.weights import check_config, read_shapes
from .errors import BadFileError, FewstepError, UnknownNameError


def load(name: str | os.PathLike, *, dtype: str = "float32", device: str = "cpu") -> Loaded:
    """Load a model by loader name, local folder or hub id. Never runs code that comes with a checkpoint.

    Args:
        name: a name from ``fewstep list``, a folder holding ``config.json`` or ``model_index.json``, or ``owner/name``.
        dtype: a torch dtype by name: ``float32``, ``bfloat16``, ``float16``.
        device: a torch device: ``cpu``, ``cuda``, ``cuda:1``.

    Raises:
        UnknownNameError: nothing of that name; the message lists the nearest loaders.
        BadFileError: the folder holds no model, or its files are damaged.
    """
    name, cards = os.fspath(name), plugins.loaders()
    if name in cards:
        return cards[name].load()(dtype=dtype, device=device)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return from_folder(folder, name=name, dtype=dtype, device=device)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return from_folder(_download(name), name=name, dtype=dtype, device=device)
    plugins.find(cards, name, "model, folder or hub id")
    raise AssertionError("find raises for a name that is not in the cards")


def from_folder(folder: Path, *, name: str, dtype: str, device: str, weights: Weights = "pretrained") -> Loaded:
    """Load an ordinary transformers or diffusers folder, or one of a masked diffusion LM; safetensors only."""
    import torch
    from safetensors import SafetensorError

    torch_dtype = getattr(torch, dtype, None)
    if not isinstance(torch_dtype, torch.dtype):
        raise ValueError(f"{dtype!r} is not a torch dtype; use float32, bfloat16 or float16")
    try:
        if (folder / "model_index.json").exists():
            return _pipeline(folder, name, torch_dtype, device, weights)
        if part := _diffusers_class(folder):
            return _part(folder, part, name, torch_dtype, device, weights)
        return _transformer(folder, name, torch_dtype, device, weights)
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadFileError(f"the model in {folder} is damaged ({error}); download or save it again") from error
    except (FewstepError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # configurations and weights can be damaged in any way; the user needs one sentence
        reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
        raise BadFileError(f"{folder} cannot be loaded as a model ({reason}); download or save it again") from error


def _transformer(folder: Path, name: str, dtype: Any, device: str, weights: Weights) -> Loaded:
    import transformers

    from .families import llada_format, masked_lm

    if not (folder / "config.json").exists():
        raise BadFileError(f"{folder} is not a model folder: it has neither config.json nor model_index.json")
    check_config(_json(folder / "config.json"), read_shapes(folder), folder)
    if _model_type(folder) in masked_lm.DIFFUSION:  # transformers reads these only with code of the folder
        model, processor = llada_format.read(folder, dtype=dtype, device=device)
        return Loaded(model=model, name=name, processor=processor, weights=weights)
    _refuse_own_code(folder)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    architecture = (config.architectures or [""])[0]
    cls = getattr(transformers, architecture, None)
    if cls is None:
        raise BadFileError(f"{folder} asks for {architecture or 'no architecture'}, which transformers does not have")
    model, info = cls.from_pretrained(
        folder,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    if missing := sorted(info["missing_keys"]):
        raise BadFileError(f"{folder} lacks {len(missing)} weights of {architecture}, for example {missing[0]}")
    text_only = architecture.endswith("ForCausalLM")
    processor = _processor(folder, text_only) if _has_processor(folder) else None
    return Loaded(model=model.to(device).eval(), name=name, processor=processor, weights=weights)


def _refuse_own_code(folder: Path) -> None:
    """Refuse a model type that only code of the folder itself could build, before transformers asks to run it.

    Raises:
        BadFileError: the configuration names such code, and transformers has no class of that type.
    """
    from transformers import CONFIG_MAPPING

    config = _json(folder / "config.json")
    kind = config.get("model_type")
    if config.get("auto_map") and kind not in CONFIG_MAPPING:
        raise BadFileError(
            f"{folder} is a {kind!r} model that needs code of its own folder (auto_map in config.json), which fewstep "
            "never runs; a model type that transformers has is needed"
        )


def _processor(folder: Path, text_only: bool) -> Any:
    import transformers
    from transformers.utils import is_torchvision_available

    if text_only:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    settings = folder / "processor_config.json"
    if settings.exists() and not is_torchvision_available():
        named = json.loads(settings.read_text(encoding="utf-8")).get("processor_class", "")
        cls = getattr(transformers, named, None)
        if cls is not None and "video_processor" in cls.get_attributes():
            return without_video(cls).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return transformers.AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def without_video(cls: type) -> Any:
    """`cls`, a transformers processor class, without its video part: that part alone needs torchvision.

    Instances are made from an image processor and a tokenizer, and save folders that the full class reads too.
    """
    parts = [part for part in cls.get_attributes() if "video" not in part]  # type: ignore[attr-defined]
    return type(cls.__name__, (cls,), {"get_attributes": classmethod(lambda _: parts), "__module__": cls.__module__})


def _json(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise BadFileError(f"{file} is damaged: it holds no JSON object")
    return content


def _model_type(folder: Path) -> str:
    return str(_json(folder / "config.json").get("model_type"))


def _diffusers_class(folder: Path) -> str:
    """The class of a single network that diffusers saved (a VAE, a transformer); empty for other folders."""
    path = folder / "config.json"
    return str(_json(path).get("_class_name", "")) if path.exists() else ""


def _part(folder: Path, part: str, name: str, dtype: Any, device: str, weights: Weights) -> Loaded:
    import diffusers

    cls = getattr(diffusers, part, None)
    if cls is None or not hasattr(cls, "from_pretrained"):
        raise BadFileError(f"{folder} asks for {part}, which diffusers does not have")
    check_config(_json(folder / "config.json"), read_shapes(folder), folder)
    if os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
        diffusers.utils.logging.disable_progress_bar()
    model, info = cls.from_pretrained(
        folder,
        torch_dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        local_files_only=True,
        low_cpu_mem_usage=False,
    )
    if missing := sorted(info["missing_keys"]):
        raise BadFileError(f"{folder} lacks {len(missing)} weights of {part}, for example {missing[0]}")
    return Loaded(model=model.to(device).eval(), name=name, weights=weights)


def _has_processor(folder: Path) -> bool:
    return any((folder / f).exists() for f in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"))


def _pipeline(folder: Path, name: str, dtype: Any, device: str, weights: Weights) -> Loaded:
    import diffusers

    index = _json(folder / "model_index.json")
    for part in (folder / str(name) for name in index if (folder / str(name) / "config.json").is_file()):
        check_config(_json(part / "config.json"), read_shapes(part), part)
    if os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):  # diffusers itself does not ask
        diffusers.utils.logging.disable_progress_bar()
    # diffusers saves a pipeline without a VAE, but loads it only when told so
    absent = {part: None for part, source in index.items() if source == [None, None]}
    pipe = diffusers.DiffusionPipeline.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, **absent
    )
    return Loaded(model=pipe.to(device), name=name, weights=weights)


def _download(repo_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"]))
    except Exception as error:  # the hub client raises many kinds; the user needs one sentence
        offline = " (offline: HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        near = ", ".join(plugins.loaders()) or "none"
        raise UnknownNameError(
            f"no model {repo_id!r} on this machine or the hub{offline}; models that load by name: {near}"
        ) from error
