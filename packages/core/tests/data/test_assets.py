"""`Asset`: an installed package first, the cache folder second, and nothing that is damaged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from fewstep import AssetMissing, BadFileError
from fewstep.cache_folder import cache_folder
from fewstep.data.assets import Asset

CONTENT = b"weights"
INSTALL = "pip install --no-deps some-weights==1.0"
ASSET = Asset(
    name="some-model",
    package="some_weights_of_this_test",
    file="data/model.bin",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    install=INSTALL,
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(root: Path, content: bytes = CONTENT) -> Path:
    path = root / "data" / "model.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_a_missing_asset_names_itself_and_the_command_that_installs_it(cache: Path):
    with pytest.raises(AssetMissing, match="some-model") as error:
        ASSET.path()
    assert INSTALL in str(error.value) and isinstance(error.value, FileNotFoundError)


def test_it_is_found_in_the_cache_folder(cache: Path):
    path = put(cache / "assets" / ASSET.package)
    assert ASSET.path() == path == ASSET.verify()


def test_an_installed_package_comes_first_and_is_not_imported(cache: Path, tmp_path: Path, monkeypatch):
    put(cache / "assets" / ASSET.package)
    package = tmp_path / "site" / ASSET.package
    path = put(package)
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert ASSET.verify() == path


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], CONTENT + b"!"])
def test_a_truncated_file_is_told_by_its_size(cache: Path, content: bytes):
    path = put(cache / "assets" / ASSET.package, content)
    with pytest.raises(BadFileError, match=f"has {len(content)} bytes instead of 7") as error:
        ASSET.path()
    assert str(path) in str(error.value) and INSTALL in str(error.value)


def test_damaged_content_of_the_right_size_is_told_by_its_sha256(cache: Path):
    path = put(cache / "assets" / ASSET.package, CONTENT[::-1])
    assert ASSET.path() == path
    with pytest.raises(BadFileError, match="sha256 differs") as error:
        ASSET.verify()
    assert str(path) in str(error.value) and INSTALL in str(error.value)


def test_a_folder_in_the_place_of_the_file_is_no_file(cache: Path):
    (cache / "assets" / ASSET.package / ASSET.file).mkdir(parents=True)
    with pytest.raises(AssetMissing):
        ASSET.path()


def test_the_cache_folder_is_the_variable_or_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FEWSTEP_CACHE", "~/here")
    assert cache_folder() == tmp_path / "here"
    for nothing in (lambda: monkeypatch.setenv("FEWSTEP_CACHE", ""), lambda: monkeypatch.delenv("FEWSTEP_CACHE")):
        nothing()
        assert cache_folder().name == "fewstep" and cache_folder().is_absolute()
