"""Compiled kernels of a bundle and their index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kontext.errors import KontextError
from kontext.kernels import archive, driver


def test_sizes_of_a_manifest() -> None:
    sizes = archive.sizes_of({"hidden_size": 192, "num_heads": 3, "mlp_ratio": 4.0}, "bf16")
    assert (sizes.hidden, sizes.heads, sizes.mlp, sizes.compute) == (192, 3, 768, torch.bfloat16)
    assert sizes.ranks == ()
    with pytest.raises(KontextError, match="computes in fp16 or bf16, not in fp32: export with --bf16"):
        archive.sizes_of({"hidden_size": 192, "num_heads": 3, "mlp_ratio": 4.0}, "fp32")


SCRIPT = """
import json, sys
from pathlib import Path
from kontext.kernels.archive import archive
from kontext.kernels.variants import Sizes
for name, data in archive(89, Sizes(hidden=128, heads=2, mlp=256), only="^(dequantize int4, proj|gate_residual)$"):
    (Path(sys.argv[1]) / name).write_bytes(data)
"""


def test_compiled_files_and_their_index(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    folder = tmp_path / "sm_89"
    folder.mkdir()
    subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], env=environment, check=True, timeout=300)
    saved = json.loads((folder / archive.INDEX).read_text())
    assert saved["architecture"] == "sm_89"
    assert [entry["name"] for entry in saved["kernels"]] == ["gate_residual", "dequantize int4, proj"]
    for entry in saved["kernels"]:
        assert (folder / entry["file"]).read_bytes()[:4] == b"\x7fELF"
        assert entry["nulls"] == 2  # Triton's scratch and profile memory
    unpacking = saved["kernels"][1]
    assert unpacking["arguments"] == [
        ["packed", "*u8"],
        ["scales", "*bf16"],
        ["out", "*bf16"],
        ["height", "i32"],
        ["half_width", "i32"],
    ]
    assert unpacking["constants"]["COLUMNS"] == 128  # cpp/launch.cpp assumes it
    assert driver.register(folder, Path.read_bytes, driver.Driver(library=object())) == 2
