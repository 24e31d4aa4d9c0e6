"""Damaged files of every kind for Python's readers, each reader in a process of its own: no signal, no hang, no
traceback, no 2 GB."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("gguf")

from ..model import test_fuzz_readers as samples
from .read_files import damaged
from .readers import READERS

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
    counts: Counter[str] = Counter()
    faults: dict[int, str] = {}
    first = inputs.start
    while first < inputs.stop and len(faults) < 200:
        scratch = tmp_path / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        words = [sys.executable, HERE / "read_files.py", name, first, inputs.stop, base, scratch]
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
        first = int((scratch / "seed").read_text()) + 1
        if done.returncode != 0:
            ended = signal.Signals(-done.returncode).name if done.returncode < 0 else done.returncode
            faults[first - 1] = f"the process ended with {ended}: {done.stderr[-500:]}"
        for line in map(json.loads, done.stdout.splitlines()):
            if "fault" in line:
                faults[line["seed"]] = line["fault"]
            else:
                counts.update(line)
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
