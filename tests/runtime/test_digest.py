"""The digest that pins a bundle, against sha256sum of the bytes that docs/bundle.md names."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kontext.errors import KontextError
from kontext.runtime.digest import check_digest, digest_of

MANIFEST = b'{"files": {"a.onnx": {"sha256": "' + b"0" * 64 + b'", "size": 1}}}\n'
DIGEST = "sha256:9f3e891fad4978eb63c5d2fb82240b683b925b980bb2d64eed6dd5062ee6b376"
"""Of `MANIFEST`, by coreutils' sha256sum."""


def test_a_golden_digest() -> None:
    assert digest_of(MANIFEST) == DIGEST


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_it_is_what_sha256sum_prints(tiny_bundle: Path) -> None:
    manifest = tiny_bundle / "manifest.json"
    printed = subprocess.run(["sha256sum", manifest], capture_output=True, text=True, check=True).stdout
    assert digest_of(manifest.read_bytes()) == f"sha256:{printed.split()[0]}"


def test_another_digest_is_refused() -> None:
    check_digest(DIGEST, DIGEST, Path("b"))
    other = digest_of(b"")
    with pytest.raises(
        KontextError, match=f"^b is not the required bundle: its digest is {DIGEST}, not {other}$"
    ):
        check_digest(other, DIGEST, Path("b"))


@pytest.mark.parametrize(
    "text", ["", DIGEST[7:], DIGEST.upper(), DIGEST[:-1], DIGEST + "0", "sha512:" + "0" * 64, DIGEST + "\n"]
)
def test_what_is_no_digest(text: str) -> None:
    with pytest.raises(KontextError, match=re.escape("a digest is sha256: and 64 hexadecimal digits, as")):
        check_digest(text, DIGEST, Path("b"))
