"""Save, load and push a method: one JSON of all its fields, safetensors for its weights, and a generated card."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

from . import plugins
from .data.files import read_text, write_text
from .errors import BadFileError

CONFIG = "fewstep.json"
PathLike = str | os.PathLike


def weights() -> Any:
    """A dataclass field for the path of a safetensors file; left out of equality and of the JSON."""
    return dataclasses.field(default=None, compare=False, metadata={"safetensors": True})


def save(method: Any, folder: PathLike, *, files: Mapping[str, str] | None = None) -> None:
    """Write `method` to `folder`; existing files of the same names are replaced, each atomically.

    Args:
        method: what is saved.
        folder: made where it does not exist.
        files: weights that are in `folder` already, by field: ``{"weights": "transformer/model.safetensors"}``. Others
            are copied there.
    """
    folder, files = Path(folder), dict(files or {})
    folder.mkdir(parents=True, exist_ok=True)
    for field in _fields(method, weights=True):
        if field.name not in files and (source := getattr(method, field.name)) is not None:
            if Path(source).is_dir() or Path(source).suffix == ".json":
                raise BadFileError(f"{source} is no single safetensors file, as {field.name} of a saved method must be")
            part = folder / f"{field.name}.safetensors.part"
            shutil.copyfile(source, part)
            os.replace(part, folder / f"{field.name}.safetensors")
    fields = {field.name: getattr(method, field.name) for field in _fields(method)}
    package = type(method).__module__.partition(".")[0]
    config = {"method": method.name, "package": package, "core": version("fewstep-core"), "fields": fields}
    config |= {"files": files} if files else {}
    write_text(folder / CONFIG, json.dumps(config, indent=2, default=dataclasses.asdict) + "\n")
    write_text(folder / "README.md", card_text(method))


def load(cls: Any, source: PathLike) -> Any:
    """Read a saved method; see `Method.from_pretrained`."""
    folder = Path(source)
    if not folder.is_dir():
        folder = shipped(str(source), getattr(cls, "name", "")) or _download(str(source))
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        name, fields = str(config["method"]), {k: _frozen(v) for k, v in config["fields"].items()}
        files = {k: _inside(folder, v) for k, v in config.get("files", {}).items()}
    except FileNotFoundError as error:
        raise BadFileError(f"{folder} is not a saved fewstep method: it has no {CONFIG}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFileError(f"{folder / CONFIG} is damaged: {error}") from error
    if "name" not in vars(cls):
        cls = plugins.find(plugins.methods(), name, "method").load()
    if cls.name != name:
        raise BadFileError(f"{folder} holds a {name} method, not {cls.name}")
    try:
        method = cls(**_renamed(cls, fields))
    except (TypeError, ValueError) as error:
        raise BadFileError(f"{folder / CONFIG} does not fit the installed {name}: {error}") from error
    stored = _renamed(cls, {path.stem: path for path in folder.glob("*.safetensors")} | files)
    return dataclasses.replace(method, **{f.name: stored.get(f.name) for f in _fields(method, weights=True)})


def shipped(model: str, method: str) -> Path | None:
    """The saved `method` that comes with a model of that name, or lies in its folder; None without one.

    Raises:
        BadFileError: the one in the folder is damaged.
    """
    card = plugins.loaders().get(model)
    if card is not None:
        package, _, folder = card.saved.get(method, "").partition(":")
        return Path(str(resources.files(package).joinpath(folder))) if package else None
    own = Path(model).expanduser()
    if model and (own / CONFIG).is_file():
        return own if _name_of(own) == method else None
    return None


def _name_of(folder: Path) -> str:
    """Name of the method that is saved in a folder."""
    try:
        return str(json.loads(read_text(folder / CONFIG))["method"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadFileError(f"{folder / CONFIG} is damaged: {error}") from error


def _download(repo_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(repo_id, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, HFValidationError) as error:
        raise BadFileError(f"{repo_id} is neither a folder nor a method on the hub that can be reached") from error


def push(method: Any, repo_id: str, *, private: bool = False) -> str:
    """Upload a saved form of `method` to the hub and return its address."""
    with tempfile.TemporaryDirectory() as folder:
        method.save_pretrained(folder)  # a method may write its weights in a form of its own
        return push_folder(folder, repo_id, private=private)


def push_folder(folder: PathLike, repo_id: str, *, private: bool = False) -> str:
    """Upload a folder to the hub (created if missing) and return its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    address = api.create_repo(repo_id, private=private, exist_ok=True)
    api.upload_folder(repo_id=repo_id, folder_path=str(folder))
    return str(address)


def card_text(method: Any) -> str:
    """The model card: front matter, what the method is, how to load it, and its fields."""
    summary = (type(method).__doc__ or "").strip().partition("\n")[0]
    rows = "\n".join(f"| `{f.name}` | `{getattr(method, f.name)}` |" for f in _fields(method))
    package = type(method).__module__.partition(".")[0]
    return (
        f"---\nlibrary_name: fewstep\ntags: [fewstep, {method.name}]\n---\n\n# {method.name}\n\n{summary}\n\n"
        f"```python\nfrom {package} import {type(method).__name__}\n\n"
        f'method = {type(method).__name__}.from_pretrained("this/repository")\nwith method.apply(model):\n    ...\n'
        f"```\n\n| field | value |\n| --- | --- |\n{rows}\n"
    )


def _fields(method: Any, *, weights: bool = False) -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(method) if f.metadata.get("safetensors", False) is weights]


def _renamed(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by the names that their fields have now."""
    return {cls.renamed.get(name, name): value for name, value in values.items()}


def _inside(folder: Path, name: str) -> Path:
    if Path(name).is_absolute() or ".." in Path(name).parts or not name.endswith(".safetensors"):
        raise ValueError(f"{name!r} is no safetensors file of this folder")
    if not (folder / name).is_file():
        raise ValueError(f"the weights {name} are missing")
    return folder / name


def _frozen(value: Any) -> Any:
    """JSON lists back to the tuples that frozen dataclasses hold."""
    if isinstance(value, list):
        return tuple(_frozen(v) for v in value)
    return value
