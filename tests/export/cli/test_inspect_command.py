"""`kontext-export inspect`: every kind of file, described from its header without reading a weight."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from safetensors.torch import save_file  # noqa: E402

from kontext.bench.fullsize import synthetic  # noqa: E402
from kontext.export.cli import main  # noqa: E402
from kontext.export.cli.source_flags import EMBEDDED  # noqa: E402
from kontext.model.config import KontextConfig  # noqa: E402
from kontext.model.diffusers_config import read_config  # noqa: E402
from kontext.model.gguf_file import t5_names  # noqa: E402
from kontext.model.networks import weight_shapes  # noqa: E402
from kontext.model.safetensors_file import TensorInfo  # noqa: E402


@pytest.fixture(autouse=True)
def no_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: TensorInfo) -> None:
        pytest.fail(f"{self.name} was read")

    monkeypatch.setattr(TensorInfo, "read", read)


def inspect(capsys: pytest.CaptureFixture[str], *paths: Path) -> str:
    assert main.main(["inspect", *map(str, paths)]) == 0
    return capsys.readouterr().out


def sparse(path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    """A file with a true header and holes for weights."""
    import math

    fields, position = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        fields[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    header = json.dumps(fields).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + position)
    return path


def test_the_real_sizes_in_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = KontextConfig()
    shapes = weight_shapes("transformer", config) | weight_shapes("modulation", config)
    path = sparse(tmp_path / "flux1-kontext-dev.safetensors", shapes)
    printed = inspect(capsys, path)
    assert "safetensors, 23.80 GB" in printed
    assert "the transformer, native names: 780 tensors, 11,901.4 M parameters, BF16" in printed
    assert "becomes 23.80 GB with --bf16, 11.9" in printed
    assert "it lacks the autoencoder (--vae), CLIP (--clip), T5 (--t5), the tokenizers" in printed


def test_text_encoders_and_autoencoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = synthetic.component_shapes(KontextConfig())
    t5 = sparse(tmp_path / "t5xxl_fp16.safetensors", shapes["text_encoder_2"])
    vae = sparse(tmp_path / "ae.safetensors", shapes["vae"])
    clip = sparse(tmp_path / "clip_l.safetensors", shapes["text_encoder"])
    printed = inspect(capsys, t5, vae, clip)
    assert "T5, transformers names: 219 tensors, 4,762.3 M parameters, BF16" in printed
    assert "the autoencoder, diffusers names: 244 tensors, 83.8 M parameters, BF16" in printed
    assert "CLIP, transformers names: 196 tensors, 123.1 M parameters, BF16" in printed


def test_whole_models_and_other_spellings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = KontextConfig()
    clip = dict(synthetic.component_shapes(config)["text_encoder"])
    clip |= {f"vision_model.{index}.weight": (3,) for index in range(4)} | {
        "text_projection.weight": (768, 768)
    }
    shapes = weight_shapes("transformer", config) | weight_shapes("modulation", config)
    renamed = {name.replace("_norm.scale", "_norm.weight"): shape for name, shape in shapes.items()}
    printed = inspect(capsys, sparse(tmp_path / "a", clip), sparse(tmp_path / "b", renamed))
    assert "CLIP, transformers names: 196 tensors, 123.1 M parameters, BF16" in printed
    assert "CLIP: not used: vision tower (4 tensors), projections (1)" in printed
    assert "the transformer, native names: 780 tensors, 11,901.4 M parameters, BF16" in printed


def test_folder_and_bundle(
    tiny_checkpoint: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = inspect(capsys, tiny_checkpoint, tiny_bundle)
    assert "a diffusers folder, kontext-random" in printed
    assert "the transformer, diffusers names: " in printed
    assert "a bundle of kontext-random" in printed
    assert "fp32 weights, computes in fp32" in printed


def test_lora(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {
        f"{module}.lora_A.weight": torch.ones(4, 3072),
        f"{module}.lora_B.weight": torch.ones(3072, 4),
        "transformer.x_embedder.lokr_w1": torch.ones(8, 8),
        "transformer.x_embedder.lokr_w2": torch.ones(384, 8),
        "transformer.other.lora_A.weight": torch.ones(4, 64),
    }
    save_file(tensors, tmp_path / "style.safetensors", {"lora_alpha": "2"})
    printed = inspect(capsys, tmp_path / "style.safetensors")
    assert "style.safetensors: safetensors, " in printed
    assert ", a LoRA" in printed
    assert "2 LoRA, 1 LoKr of rank 4, LoRA names: 5 tensors" in printed
    assert "fits FLUX.1 Kontext: 2 updates" in printed
    assert "1 tensor matches no weight of it: transformer.other.lora_A.weight" in printed
    assert "alpha 2 from the header: the factors of rank 4 are multiplied by 0.5" in printed


def test_lora_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer = "base_model.model.x_embedder"
    tensors = {f"{layer}.lora_A.weight": torch.ones(4, 60), f"{layer}.lora_B.weight": torch.ones(3072, 4)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    printed = inspect(capsys, tmp_path)
    assert "adapter_model.safetensors: safetensors" in printed
    assert "not for FLUX.1 Kontext: " in printed
    assert "lora_A.weight" in printed


def test_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"PK\x03\x04" + bytes(50))
    assert main.main(["inspect", str(tmp_path / "model.ckpt")]) == 2
    assert "is a pickle" in capsys.readouterr().err
    assert main.main(["inspect", str(tmp_path / "nothing")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_the_others_are_described_if_some_are_bad(
    tmp_path: Path, tiny_bundle: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad").write_bytes(b"PK\x03\x04" + bytes(50))
    paths = [tmp_path / "bad", tiny_checkpoint, tmp_path / "nothing", tiny_bundle]
    assert main.main(["inspect", *map(str, paths)]) == 2
    printed = capsys.readouterr()
    assert f"{tiny_checkpoint}: a diffusers folder" in printed.out
    assert f"{tiny_bundle}: a bundle" in printed.out
    bad, nothing = printed.err.splitlines()
    assert bad.startswith(f"error: {tmp_path / 'bad'} is a pickle")
    assert nothing == f"error: {tmp_path / 'nothing'} does not exist"


def test_sizes_are_those_of_an_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small model is computed in fp32 by default: what is not quantized is stored so."""
    if not (EMBEDDED / "model_index.json").exists():
        pytest.skip("the embedded model is not part of this checkout")
    printed = inspect(capsys, EMBEDDED)
    sizes = {flag: size for size, flag in re.findall(r"([\d.]+) MB with --(\w+)", printed)}
    assert list(sizes) == ["bf16", "fp8", "int8", "int4"]
    monkeypatch.undo()
    assert main.main([str(EMBEDDED), "-o", str(tmp_path / "fp8"), "--fp8", "--quiet"]) == 0
    made = sum(path.stat().st_size for path in (tmp_path / "fp8").rglob("*") if path.is_file())
    assert float(sizes["fp8"]) * 1e6 == pytest.approx(made, rel=0.03)


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_an_incomplete_lora_is_a_bad_file(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sparse(tmp_path / "lora.safetensors", {f"transformer.x_embedder.{part}.weight": (4, 64)})
    assert main.main(["inspect", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {path}: tensor ")
    assert printed.err.endswith(": the file is incomplete\n")


def test_another_programs_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web app", "icons": []}')
    assert main.main(["inspect", str(tmp_path)]) == 2
    assert "has no model_index.json" in capsys.readouterr().err


def test_an_autoencoder_that_is_not_flux(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = inspect(capsys, tiny_checkpoint / "vae/diffusion_pytorch_model.safetensors")
    assert "the autoencoder, diffusers names" in printed
    assert "becomes" not in printed


@pytest.fixture
def every_kind(tmp_path: Path, tiny_bundle: Path, tiny_checkpoint: Path) -> list[Path]:
    """A path of every kind that `inspect` describes, among them those of which it reads small tensors: notes about
    formats, alphas, and a LoRA's tensors that match nothing."""
    gguf = pytest.importorskip("gguf")
    config = read_config(tiny_checkpoint)
    writer = gguf.GGUFWriter(tmp_path / "t5.gguf", "t5encoder")
    shapes = weight_shapes("text_encoder_2", config)
    for theirs, ours in t5_names(config.text_encoder_2.num_layers).items():
        writer.add_tensor(theirs, torch.zeros(shapes[ours]).half().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    module, whole = "transformer.transformer_blocks.0.attn.to_q", "transformer.x_embedder"
    lora = {
        f"{module}.lora_down.weight": torch.ones(4, 3072),
        f"{module}.lora_up.weight": torch.ones(3072, 4),
        f"{module}.alpha": torch.tensor(2.0).bfloat16(),
        f"{whole}.diff_b": torch.ones(3072),
        "transformer.other.diff_b": torch.zeros(3),
    }
    save_file(lora, tmp_path / "style.safetensors")
    (tmp_path / "adapter").mkdir()
    peft = {f"{module}.lora_A.weight": torch.ones(4, 3072), f"{module}.lora_B.weight": torch.ones(3072, 4)}
    save_file(peft, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    ready = {"transformer.lora_down": torch.ones(4, 2), "transformer.lora_up": torch.ones(4, 2)}
    save_file(ready, tmp_path / "ready.safetensors", {"format": "kontext-lora", "version": "1"})

    t5 = {name: torch.zeros(shape).half() for name, shape in shapes.items()}
    name = "encoder.block.0.layer.0.SelfAttention.q"
    note = json.dumps({"format": "float8_e4m3fn"}).encode()
    t5[f"{name}.weight"] = t5[f"{name}.weight"].to(torch.float8_e4m3fn)
    t5 |= {
        f"{name}.weight_scale": torch.ones(()),
        f"{name}.comfy_quant": torch.tensor(list(note), dtype=torch.uint8),
    }
    eight = "encoder.block.0.layer.0.SelfAttention.k"
    t5[f"{eight}.weight"] = t5[f"{eight}.weight"].to(torch.int8)
    t5 |= {
        f"{eight}.SCB": torch.ones(len(t5[f"{eight}.weight"])),
        f"{eight}.weight_format": torch.zeros((), dtype=torch.uint8),
    }
    save_file(t5, tmp_path / "quantized.safetensors")

    transformer = sparse(
        tmp_path / "flux.safetensors",
        dict(weight_shapes("transformer", KontextConfig()))
        | dict(weight_shapes("modulation", KontextConfig())),
    )
    return [
        tiny_bundle,
        tiny_bundle / "manifest.json",
        tiny_bundle / "weights" / "transformer.safetensors",
        tiny_checkpoint,
        transformer,
        *(
            tmp_path / name
            for name in (
                "t5.gguf",
                "style.safetensors",
                "adapter",
                "ready.safetensors",
                "quantized.safetensors",
            )
        ),
    ]


def test_nothing_heavy_is_imported(every_kind: list[Path]) -> None:
    heavy = (
        "torch",
        "numpy",
        "transformers",
        "diffusers",
        "onnx",
        "onnx_ir",
        "onnxruntime",
        "gguf",
        "safetensors",
        "PIL",
    )
    code = (
        "import sys; from kontext.export.cli.main import main\n"
        "code = main(['inspect', *sys.argv[1:]])\n"
        f"print('loaded:', *sorted(set({heavy}) & set(sys.modules))); sys.exit(code)"
    )
    words = [sys.executable, "-c", code, *map(str, every_kind)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "loaded:"
    for kind in (
        "a bundle of",
        "the weights of transformer of the bundle",
        "a diffusers folder",
        "the transformer, native names: 780 tensors",
        "GGUF, ",
        "T5, llama.cpp names",
        "fits FLUX.1 Kontext: 2 updates",
        "fits FLUX.1 Kontext: 1 update",
        "a LoRA ready for bundles",
        "F8_E4M3 scaled ",
        "bitsandbytes INT8 ",
    ):
        assert kind in done.stdout, kind
