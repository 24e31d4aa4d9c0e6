"""FILE, or FILE:WEIGHT."""

from __future__ import annotations

from pathlib import Path

import pytest

from kontext.errors import KontextError
from kontext.lora_flag import parse_lora_flag


@pytest.mark.parametrize(
    ("text", "file", "weight"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("a.safetensors:-1e-1", "a.safetensors", -0.1),
        ("a:b.safetensors", "a:b.safetensors", 1.0),
        ("a:b.safetensors:2", "a:b.safetensors", 2.0),
        ("C:\\loras\\a.safetensors", "C:\\loras\\a.safetensors", 1.0),
        ("C:\\loras\\a.safetensors:.5", "C:\\loras\\a.safetensors", 0.5),
        ("a.bin", "a.bin", 1.0),
    ],
)
def test_requests(text: str, file: str, weight: float) -> None:
    assert parse_lora_flag(text) == (Path(file), weight)


def test_a_file_that_ends_in_a_colon_and_a_number(tmp_path: Path) -> None:
    (tmp_path / "style:3").touch()
    assert parse_lora_flag(f"{tmp_path}/style:3") == (tmp_path / "style:3", 1.0)
    assert parse_lora_flag(f"{tmp_path}/style:3:0.5") == (tmp_path / "style:3", 0.5)


@pytest.mark.parametrize(
    "text", ["a.safetensors:", "a.safetensors:strong", "a.safetensors:nan", "a.safetensors:inf"]
)
def test_weights_that_are_none(text: str) -> None:
    with pytest.raises(KontextError, match=r"is not a weight: write FILE or FILE:WEIGHT"):
        parse_lora_flag(text)


@pytest.mark.parametrize("text", ["", ":0.5"])
def test_requests_without_a_file(text: str) -> None:
    with pytest.raises(KontextError, match="names no file"):
        parse_lora_flag(text)


@pytest.mark.parametrize("weight", ["1001", "-1e39"])
def test_a_weight_that_makes_no_picture(weight: str) -> None:
    """1e39 was a traceback of PyTorch, which adds in fp32."""
    with pytest.raises(KontextError, match="a weight is a number from -1000 to 1000"):
        parse_lora_flag(f"style.safetensors:{weight}")
