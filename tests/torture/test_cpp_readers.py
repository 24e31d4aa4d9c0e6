"""Damaged files for the C++ runtime's readers of bundles: libFuzzer, which prefers inputs that reach new code, with
AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .readers import ready_lora_bytes

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "runtime" / "cpp"
JSON = ROOT / "build" / "onnxruntime-sdk" / "include"
"""The JSON library's headers, of `make sdk`."""

PARTS = (
    *(
        "bpe",
        "bundle",
        "bundle_files",
        "graph_file",
        "links",
        "loras",
        "normalizers",
        "pre_tokenizers",
        "regular_file",
        "safetensors_header",
        "sampling",
        "sha256",
        "sigmas",
    ),
    *("tokenizer", "tokenizer_limits", "unicode", "unigram"),
)
"""The sources that the readers are in; none of them needs ONNX Runtime."""

ROWS = {"modulation": (3, 5), "transformer": (6, 8)}
"""Of the slots for LoRAs in `fuzz.cpp`."""

HEALTHY = {
    "graph": ("text_encoder.onnx", "modulation.onnx"),
    "manifest": ("manifest.json",),
    "tokenizer": ("tokenizers/clip.json", "tokenizers/t5.json"),
    "lora": (),
}
"""Reader → files of a bundle to begin with."""


@pytest.fixture(scope="session")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = (os.environ.get("CLANG", "clang++"), *(f"clang++-{version}" for version in range(22, 13, -1)))
    clang = next(filter(None, map(shutil.which, names)), None)
    if clang is None:
        pytest.skip("libFuzzer comes with clang, which is not installed: apt-get install clang")
    if not JSON.exists():
        pytest.skip("the JSON library's headers are not there: `make sdk` could not fetch them")
    program = tmp_path_factory.mktemp("fuzzer") / "fuzz"
    words = [
        *(clang, "-std=c++17", "-O1", "-g1", "-fsanitize=fuzzer,address,undefined"),
        *("-fno-sanitize-recover=undefined", f"-I{SOURCES}/include", f"-I{SOURCES}/src", f"-I{JSON}"),
        *(str(SOURCES / "src" / f"{part}.cpp") for part in PARTS),
        *(str(SOURCES / "tests" / "fuzz.cpp"), "-o", str(program)),
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return program


@pytest.mark.parametrize("reader", list(HEALTHY))
def test_cpp(reader: str, inputs: range, kept: Path, fuzzer: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    corpus, folder = tmp_path / "corpus", tmp_path / "bundle"
    corpus.mkdir()
    shutil.copytree(tiny_bundle, folder)
    for name in HEALTHY[reader]:
        shutil.copy(tiny_bundle / name, corpus)
    if reader == "lora":
        (corpus / "x.safetensors").write_bytes(ready_lora_bytes(ROWS, "a layout"))
    words = [
        *(fuzzer, f"-runs={len(inputs)}", f"-seed={inputs.start + 1}", "-max_len=100000", "-timeout=10"),
        *("-rss_limit_mb=2560", "-print_final_stats=1", f"-artifact_prefix={kept}/cpp-{reader}-", corpus),
    ]
    environment = {**os.environ, "KONTEXT_FUZZ": reader, "KONTEXT_FUZZ_FOLDER": str(folder)}
    done = subprocess.run(
        list(map(str, words)), env=environment, capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, done.stderr[-6000:]
    runs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert runs is not None
    print(f"\ncpp {reader}: {runs[1]} inputs, 0 faults")
