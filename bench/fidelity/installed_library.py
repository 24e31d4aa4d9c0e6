"""A library that a peer needs: whether it is installed, and which version."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass


@dataclass(frozen=True)
class InstalledLibrary:
    """`distribution` is what to install, `module` the name to import."""

    distribution: str
    module: str

    def version(self) -> str:
        return f"{self.distribution} {importlib.metadata.version(self.distribution)}"

    def is_installed(self) -> bool:
        try:
            importlib.metadata.version(self.distribution)
            return importlib.util.find_spec(self.module) is not None
        except (ImportError, importlib.metadata.PackageNotFoundError):
            return False
