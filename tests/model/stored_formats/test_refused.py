"""Formats that are named, and not read."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.model.weight_files import open_weight_file  # noqa: E402


@pytest.mark.parametrize(
    ("names", "maker"),
    [
        (("b.0.qkv_proj.qweight", "b.0.qkv_proj.wscales", "b.0.qkv_proj.proj_down"), "Nunchaku's SVDQuant"),
        (("b.0.q.qweight", "b.0.q.qzeros", "b.0.q.scales"), "GPTQ or AWQ"),
        (("q.weight", "q.weight_s_rel"), "ComfyUI's asym_w4a8_int8"),
        (("q.weight._data", "q.weight._scale"), "optimum-quanto"),
        (("q.weight_packed", "q.weight_scale"), "compressed-tensors"),
        (("q.weight", "q.weight_scale_inv"), "FP8 in blocks"),
    ],
)
def test_refused(names: tuple[str, ...], maker: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({name: torch.ones(4, 4) for name in names}, path)
    with pytest.raises(KontextError, match=f"holds weights of {maker}.*: export from the bf16 original"):
        open_weight_file(path)
