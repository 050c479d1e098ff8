"""Find real files that other packages ship: an installed package first, then the cache folder."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from ..cache_folder import cache_folder
from ..errors import AssetMissing, BadFileError


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A file shipped by a package that is never imported for it."""

    name: str
    package: str
    """Top-level module of the package that ships the file; also its folder below `cache_folder`."""
    file: str
    """Path inside that package."""
    size: int
    """Bytes; checked on every use, so that a truncated file is noticed at once."""
    sha256: str
    install: str
    """The command that installs it, as a user would type it."""

    def path(self) -> Path:
        """The file on this machine.

        Raises:
            AssetMissing: neither installed nor cached; the message names the command that installs it.
            BadFileError: it is there but of another size.
        """
        for root in self._roots():
            path = root / self.file
            if path.is_file():
                if (size := path.stat().st_size) != self.size:
                    raise BadFileError(
                        f"{path} has {size} bytes instead of {self.size}: it is truncated or another version; "
                        f"install it again with: {self.install}"
                    )
                return path
        raise AssetMissing(f"{self.name} is not on this machine; install it with: {self.install}")

    def verify(self) -> Path:
        """Like `path`, and the content is compared with `sha256` (about a second per 300 MB)."""
        path = self.path()
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.sha256:
            raise BadFileError(f"{path} is damaged (its sha256 differs); install it again with: {self.install}")
        return path

    def _roots(self) -> list[Path]:
        spec = importlib.util.find_spec(self.package)  # a top-level name: does not import it
        installed = list(spec.submodule_search_locations or []) if spec else []
        return [*map(Path, installed), cache_folder() / "assets" / self.package]
