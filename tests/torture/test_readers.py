"""Damaged files of every kind for Python's readers, each reader in a process of its own (`trying`)."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("gguf")

from ..model import test_fuzz_readers as samples
from .read_files import damaged
from .readers import READERS
from .trying import in_processes

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def base(shared_folder: Path, tiny_bundle: Path, tiny_checkpoint: Path) -> Path:
    """Healthy files of every kind."""
    import torch
    from safetensors.torch import save_file

    folder = shared_folder / "healthy"
    if folder.exists():
        return folder
    unfinished = shared_folder / "healthy.unfinished"
    shutil.copytree(tiny_bundle, unfinished / "bundle")
    shutil.copytree(tiny_checkpoint, unfinished / "checkpoint")
    (unfinished / "plain.safetensors").write_bytes(samples.safetensors_bytes(samples.SAFETENSORS))
    (unfinished / "packed.safetensors").write_bytes(samples.packed_bytes(samples.PACKED, {}))
    (unfinished / "plain.gguf").write_bytes(samples.gguf_bytes(samples.GGUF))
    (unfinished / "lora").mkdir()
    block = "base_model.model.single_transformer_blocks.0.attn.to_q"
    factors = {f"{block}.lora_A.weight": torch.ones(4, 64), f"{block}.lora_B.weight": torch.ones(64, 4)}
    save_file(
        factors, unfinished / "lora" / "adapter_model.safetensors", {"format": "pt", "ss_network_alpha": "4"}
    )
    settings = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    (unfinished / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    unfinished.rename(folder)
    return folder


@pytest.mark.parametrize("name", list(READERS))
def test_python(name: str, inputs: range, kept: Path, base: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"

    def command(first: int) -> list[object]:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        return [sys.executable, HERE / "read_files.py", name, first, inputs.stop, base, scratch]

    counts, faults = in_processes(command, inputs, scratch / "seed")
    scratch = tmp_path / "again"
    scratch.mkdir()
    print(f"\n{name}: {dict(counts)}, {len(faults)} faults")
    if faults:
        reader = READERS[name](base, scratch)
        for seed, fault in list(faults.items())[:50]:
            (kept / f"{name}-{seed}").write_bytes(damaged(reader, name, seed))
            print(f"seed {seed}: {fault}")
    assert not faults
    assert counts["refused"] > 0
