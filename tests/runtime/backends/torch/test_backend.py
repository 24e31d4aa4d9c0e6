"""The torch backend on a CPU: the same pictures as ONNX Runtime from the same bundles, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from kontext.decibels import psnr  # noqa: E402
from kontext.errors import KontextError  # noqa: E402
from kontext.quant.formats import FORMATS  # noqa: E402
from kontext.runtime import OnnxRuntimeOptions, Pipeline, TorchOptions  # noqa: E402
from kontext.runtime.backends import options  # noqa: E402
from kontext.runtime.backends.torch import backend as backend_module  # noqa: E402
from kontext.runtime.backends.torch import (  # noqa: E402
    memory,
    weights,
)
from kontext.runtime.backends.torch.backend import TorchBackend  # noqa: E402
from kontext.runtime.backends.torch.linear import ACTIVATIONS, KernelLinear, choose_activations  # noqa: E402
from kontext.runtime.bundle import Bundle  # noqa: E402

CPU = torch.device("cpu")
TEXT = "make the circle red"


def photograph() -> Image.Image:
    return Image.effect_mandelbrot((128, 128), (-2, -1.5, 1, 1.5), 50).convert("RGB")


class Capture(TorchDispatchMode):
    """Refuses what a CUDA graph's capture refuses and a CPU can tell: tensors made of Python's numbers, whose copy to
    a GPU would start in pageable memory, and numbers read back."""

    REFUSED = (torch.ops.aten.lift_fresh.default, torch.ops.aten._local_scalar_dense.default)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in self.REFUSED, f"{func} in a step"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (
            "text_encoder",
            {"num_layers": 65_536},
            "model.text_encoder: num_layers is 65536, which no model has",
        ),
        ("text_encoder", {"num_heads": 5}, "model describes no text_encoder: CLIP's 5 heads do not divide"),
        ("text_encoder", {"activation": "relu"}, "CLIP activation 'relu' is unknown"),
        ("text_encoder", None, "model.text_encoder: text_encoder must be an object"),
        ("text_encoder_2", {"relative_buckets": 3}, "T5 has 3 buckets for its distances"),
        ("autoencoder", {"norm_groups": 7}, "model describes no vae_"),
    ],
)
def test_sizes_that_are_no_models(
    tiny_bundle: Path, tmp_path: Path, part: str, change: dict[str, object] | None, message: str
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["model"][part] = None if change is None else {**manifest["model"][part], **change}
    path.write_text(json.dumps(manifest))
    with pytest.raises(KontextError, match=re.escape(message)):
        edited(folder)


def edited(folder: Path, **options: Any) -> Image.Image:
    bundle = Bundle.open(folder)
    return Pipeline(bundle, TorchBackend(bundle, "cpu", TorchOptions(**options))).edit(
        photograph(), TEXT, steps=4
    )


@pytest.fixture(scope="module")
def onnx_pictures(embedded: dict[str, Path]) -> dict[str, Image.Image]:
    pictures = {}
    for name, folder in embedded.items():
        pipe = Pipeline.load(folder, device="cpu", backend=OnnxRuntimeOptions(threads=1))
        pictures[name] = pipe.edit(photograph(), TEXT, steps=4)
    return pictures


@pytest.mark.parametrize(("name", "bound"), [("fp32", 60), ("fp8", 60), ("int4", 45)])
def test_the_same_picture_as_onnx_runtime(
    name: str, bound: float, embedded: dict[str, Path], onnx_pictures: dict[str, Image.Image]
) -> None:
    """With INT4 weights ONNX Runtime rounds activations to 8 bits, and this backend does not."""
    assert psnr(edited(embedded[name]), onnx_pictures[name]) >= bound


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fp32", {"compute": "bf16"}),
        ("fp32", {"attention": "fp8"}),
        ("fp32", {"attention": "int8"}),
        ("fp8", {"compute": "bf16"}),
        ("int4", {"compute": "bf16"}),
    ],
)
def test_what_a_gpu_computes_in(
    name: str, options: dict[str, Any], embedded: dict[str, Path], onnx_pictures: dict[str, Image.Image]
) -> None:
    """The numbers of the GPU's formats, by the kernels' reference implementations, against fp32 activations."""
    assert psnr(edited(embedded[name], **options), onnx_pictures[name]) >= 45


@pytest.mark.parametrize("name", ["fp8", "int4"])
def test_fp8_activations_stay_close(name: str, embedded: dict[str, Path]) -> None:
    assert psnr(edited(embedded[name], activations="fp8"), edited(embedded[name])) >= 45


@pytest.mark.parametrize("name", ["fp32", "fp8", "int4"])
def test_a_step_can_be_captured(
    name: str, embedded: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = memory.GraphedStep.__call__

    def captured(self: Any, inputs: dict[str, Any]) -> Any:
        with Capture():
            return plain(self, inputs)

    monkeypatch.setattr(memory.GraphedStep, "__call__", captured)
    edited(embedded[name])
    if name != "fp32":
        edited(embedded[name], activations="fp8", attention="fp8")


def test_offload_and_batches(tiny_bundle: Path) -> None:
    """Blocks from host memory give the same numbers; a batch of different prompts is its rows."""
    bundle = Bundle.open(tiny_bundle)
    plain = Pipeline(bundle, TorchBackend(bundle, "cpu"))
    with pytest.warns(UserWarning, match="--offload saves no memory on a CPU: it is for GPUs"):
        offloaded = Pipeline(bundle, TorchBackend(bundle, "cpu", TorchOptions(offload=True)))
    pictures = plain.edit(photograph(), ["x", "make it blue"], steps=2)
    others = offloaded.edit(photograph(), ["x", "make it blue"], steps=2)
    reference = Pipeline.load(tiny_bundle, device="cpu").edit(photograph(), ["x", "make it blue"], steps=2)
    for a, b, c in zip(pictures, others, reference, strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))
        assert psnr(a, c) > 55
    assert psnr(plain.edit(None, "x", steps=2), Pipeline.load(tiny_bundle).edit(None, "x", steps=2)) > 55


def changed(bundle: Path, folder: Path, change: Any) -> Path:
    """A copy of a bundle with its transformer's tensors changed, and a manifest that agrees."""
    shutil.copytree(bundle, folder)
    path = folder / "weights" / "transformer.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["weights/transformer.safetensors"]["size"] = path.stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_low_rank_branch_adds_its_product(tiny_bundle: Path, tmp_path: Path) -> None:
    """weight = rest + down @ up gives the picture of the whole weight."""

    def split(tensors: dict[str, Any]) -> None:
        for name in [
            name for name in tensors if name.endswith((".linear1.weight", "_mlp.0.weight", ".proj.weight"))
        ]:
            u, s, v = torch.linalg.svd(tensors[name], full_matrices=False)
            down, up = u[:, :6] * s[:6], v[:6]
            tensors[name] = (tensors[name] - down @ up).contiguous()
            tensors[f"{name}_down"], tensors[f"{name}_up"] = down.contiguous(), up.contiguous()

    folder = changed(tiny_bundle, tmp_path / "branch", split)
    assert psnr(edited(folder), edited(tiny_bundle)) > 55


@pytest.fixture(scope="module")
def static_bundle(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    untraced: Callable[[Path], AbstractContextManager[None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """`--int8 --static-inputs` of `tiny_checkpoint`, calibrated on the pictures below."""
    from kontext.export.cli.main import main

    root = tmp_path_factory.mktemp("static")
    samples = root / "samples"
    samples.mkdir()
    for turn in range(4):
        photograph().rotate(90 * turn).save(samples / f"{turn}.png")
        (samples / f"{turn}.txt").write_text(TEXT, encoding="utf-8")
    flags = ["--fp32", "--int8", "--static-inputs", "--calibrate", str(samples), "--steps", "4"]
    with untraced(tiny_bundle):
        assert main([str(tiny_checkpoint), "-o", str(root / "bundle"), *flags, "--quiet"]) == 0
    return root / "bundle"


def test_static_int8_inputs(static_bundle: Path, tiny_bundle: Path) -> None:
    """A whole edit beside ONNX Runtime, which rounds inputs; a CPU here does not, so it is nearer to fp32."""
    layers = Bundle.open(static_bundle).manifest["precision"]["layers"]["transformer"].values()
    assert any(isinstance(layer, dict) and layer.get("rounding") == "static" for layer in layers)
    pictures = {
        name: Pipeline.load(folder, device="cpu", backend=OnnxRuntimeOptions(threads=1)).edit(
            photograph(), TEXT, steps=4
        )
        for name, folder in (("fp32", tiny_bundle), ("static", static_bundle))
    }
    assert psnr(edited(static_bundle), pictures["static"]) > 35
    assert psnr(edited(static_bundle, activations="int8"), pictures["static"]) > 35
    assert psnr(edited(static_bundle), pictures["fp32"]) > psnr(pictures["static"], pictures["fp32"])


def test_a_missing_scale_of_inputs_is_refused(static_bundle: Path, tmp_path: Path) -> None:
    """Oracle: the manifest, which says that the layer's inputs are rounded with it."""
    folder = Path(shutil.copytree(static_bundle, tmp_path / "copy"))
    bundle = Bundle.open(folder)
    path, name = bundle.graphs["transformer"].weights, "double_blocks.0.img_attn.qkv.weight_input_scale"
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path)
    with pytest.raises(KontextError, match=f"has no tensor {re.escape(name)}"):
        TorchBackend(bundle, "cpu").load_transformer()


def test_linears_in_every_format_with_static_scales() -> None:
    """FP8 and INT8 through the code path of a GPU, the GELU in the epilogue at a static scale."""
    g = torch.Generator().manual_seed(5)
    x, weight, bias = (
        torch.randn(1, 9, 64, generator=g),
        torch.randn(64, 48, generator=g) / 8,
        torch.randn(48, generator=g),
    )
    wanted = x.double() @ weight.double() + bias.double()
    for format, bound in (("fp8", 0.05), ("int8", 0.02)):
        values, scale = FORMATS[format].quantize(weight, torch.float32)
        stored = weights.StoredLinear(values, bias, scale, torch.tensor([0.01]), format=format)
        linear = KernelLinear.of(stored, format)
        assert (linear.activations, linear.channels, linear.static) == (format, 48, True)
        out = torch.empty(1, 9, 48)
        linear.product(linear.joined(x, None), out)
        assert float((out.double() - wanted).norm() / wanted.norm()) < bound
        codes = linear.coded((x / 0.03).to(values.dtype))
        assert tuple(codes.scale.shape) == (1, 9)  # type: ignore[union-attr]
        assert KernelLinear.of(stored, "16-bit").channels == 48


@pytest.mark.parametrize("rank", [0, 8])
def test_linears_with_nvfp4_inputs(rank: int) -> None:
    """Inputs rounded in blocks under the calibrated scale, the branch of the inputs before that; without such a scale
    inputs stay as they are. Oracle: float64 of the bundle's weight."""
    g = torch.Generator().manual_seed(6)
    x, weight = torch.randn(2, 9, 64, generator=g), torch.randn(64, 48, generator=g) / 8
    bias, gate = torch.randn(48, generator=g), torch.randn(2, 48, generator=g)
    values, *scales = FORMATS["nvfp4"].quantize(weight, torch.float32)
    table, scale, _ = FORMATS["nvfp4"].kernel_operands(*scales)
    stored = weights.StoredLinear(
        values, bias, scale, torch.tensor([8 / (6 * 448)]), format="nvfp4", table=table
    )
    wanted = x.double() @ stored.dense(torch.float64) + bias.double()
    if rank:
        down, up = torch.randn(64, rank, generator=g), torch.randn(rank, 48, generator=g)
        stored = stored.with_branch(down, up, torch.float32)
        wanted = wanted + x.double() @ down.double() @ up.double()
    linear = KernelLinear.of(stored, "nvfp4")
    assert (linear.activations, linear.channels, linear.static) == ("nvfp4", 48, False)
    out = torch.empty(2, 9, 48)
    linear.product(linear.joined(x, None), out)
    assert 1e-3 < float((out.double() - wanted).norm() / wanted.norm()) < 0.1
    linear.product(linear.joined(x, None), out, gate)
    assert float((out.double() - (1 + gate.double()[:, None]) * wanted).norm() / wanted.norm()) < 0.2
    for other in (
        KernelLinear.of(stored, "16-bit"),
        KernelLinear.of(weights.replace(stored, input_scale=None), "nvfp4"),
    ):
        assert (other.activations, other.channels) == ("16-bit", 48)
        other.product(other.joined(x, None), out)
        assert float((out.double() - wanted).norm() / wanted.norm()) < 1e-5


def test_what_nvfp4_activations_need() -> None:
    """One rule for all formats: a CPU rounds on request only; a GPU by itself, if its tensor cores have the format."""
    assert choose_activations("auto", {"nvfp4"}, CPU) == "16-bit"
    assert choose_activations("nvfp4", {"nvfp4"}, CPU) == "nvfp4"
    assert get_args(options.Activations) == ACTIVATIONS
    with pytest.raises(KontextError, match="NVFP4 activations need NVFP4 weights"):
        choose_activations("nvfp4", {"fp8"}, CPU)
    with pytest.raises(
        KontextError, match=r"need scales from calibration, which this bundle.s transformer does not"
    ):
        choose_activations("nvfp4", {"nvfp4"}, CPU, calibrated=False)


def test_the_tensors_of_nested_data() -> None:
    stored = weights.StoredLinear(torch.ones(2), None, torch.ones(3))
    doubled = weights.each_tensor((stored, (torch.ones(1),)), lambda tensor: tensor * 2)
    assert doubled[0].scale.tolist() == [2, 2, 2]
    assert doubled[0].bias is None
    assert doubled[1][0].tolist() == [2]


def test_a_step_without_a_gpu_is_not_captured() -> None:
    step = memory.GraphedStep(lambda x: x + 1, CPU)
    assert step({"x": torch.ones(1)}).item() == 2
    assert not step.graphs


# -- what it refuses --


def test_tensors_that_it_does_not_know_or_miss(tiny_bundle: Path, tmp_path: Path) -> None:
    def unknown(tensors: dict[str, Any]) -> None:
        tensors["single_blocks.0.linear1.weight_smooth"] = torch.ones(64)

    def missing(tensors: dict[str, Any]) -> None:
        del tensors["single_blocks.0.linear1.bias"]

    def shape(tensors: dict[str, Any]) -> None:
        tensors["img_in.weight"] = torch.zeros(3, 3)

    for number, (change, message) in enumerate(
        (
            (unknown, "1 tensors that the torch backend does not know"),
            (missing, "has no tensor"),
            (shape, r"is \[3, 3\]"),
        )
    ):
        folder = changed(tiny_bundle, tmp_path / str(number), change)
        with pytest.raises(KontextError, match=message):
            edited(folder)


def test_options_that_make_no_sense(tiny_bundle: Path) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(KontextError, match="needs a PyTorch with CUDA"):
            Pipeline.load(tiny_bundle, backend="torch", device="cuda")
    with pytest.raises(KontextError, match="FP8 activations need FP8 or INT4 weights"):
        edited(tiny_bundle, activations="fp8")
    with pytest.raises(KontextError, match="INT8 activations need INT8 weights"):
        choose_activations("int8", {"fp8"}, CPU)


def test_kernels_that_the_manifest_does_not_list_are_not_loaded(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU without Triton; the line names the file."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    index = folder / "kernels" / "sm_89" / "kernels.json"
    index.parent.mkdir(parents=True)
    index.write_text("{}")
    monkeypatch.setattr(backend_module, "device_capability", lambda _device: 89)
    backend = object.__new__(TorchBackend)
    backend.bundle, backend.device = Bundle.open(folder), torch.device("cuda")
    with pytest.raises(KontextError, match=rf"no compiled kernels: {index} is not in its manifest: "):
        backend.register_kernels()
    index.unlink()
    with pytest.raises(KontextError, match="no compiled kernels: there are none for this GPU: "):
        backend.register_kernels()
    index.write_text("{}")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["kernels/sm_89/kernels.json"] = {"size": 2, "sha256": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    backend.bundle = Bundle.open(folder)
    with pytest.raises(KontextError, match=r"kernels\.json is damaged: .*; compile the kernels again"):
        backend.register_kernels()


def test_the_command_line_and_what_the_lean_runtime_imports(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    words = [
        sys.executable,
        "-m",
        "kontext.runtime.cli",
        str(tiny_bundle),
        "-p",
        "x",
        "-o",
        str(out),
        "--steps",
        "1",
    ]
    done = subprocess.run([*words, "--backend", "torch", "--device", "cpu"], capture_output=True, text=True)
    assert (done.returncode, out.exists()) == (0, True), done.stderr
    check = "import sys, kontext.runtime.pipeline, kontext.runtime.backends.onnxruntime; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert answer == "False\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(embedded: dict[str, Path], onnx_pictures: dict[str, Image.Image]) -> None:
    for name in ("fp32", "fp8", "int4"):
        bundle = Bundle.open(embedded[name])
        picture = Pipeline(bundle, TorchBackend(bundle, "cuda")).edit(photograph(), TEXT, steps=4)
        assert psnr(picture, onnx_pictures[name]) >= 35


@pytest.mark.parametrize("format", ["nf4", "nvfp4", "uint4"])
def test_all_of_a_linear_is_where_its_weight_is(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table made on the host would be an address that a kernel cannot read."""
    stored = FORMATS[format]
    tensors = stored.quantize(torch.randn(128, 64), torch.float32)
    names = [f"l.weight{ending}" for ending, *_ in stored.layout((128, 64))]
    path = tmp_path / "w.safetensors"
    save_file({**dict(zip(names, tensors, strict=True)), "l.bias": torch.ones(64)}, path)
    file = weights.WeightFile(path, torch.device("cpu"), torch.float32)
    read = file.read
    monkeypatch.setattr(file, "read", lambda *words, **options: read(*words, **options).to("meta"))
    devices: set[str] = set()
    weights.each_tensor(file.linear("l", 128, 64), lambda tensor: devices.add(tensor.device.type) or tensor)
    assert devices == {"meta"}


@pytest.mark.parametrize(
    ("layer", "static"),
    [
        *(
            (each, False)
            for each in (("nf4", 0), ("nf4", 8), ("nvfp4", 8), ("uint4", 0), ("int8", 4), ("int4", 0))
        ),
        (("int8", 0), True),
    ],
    ids=str,
)
def test_every_stored_format_is_read_as_it_was_meant(
    layer: tuple[str, int], static: bool, tmp_path: Path
) -> None:
    """What `quant.quantize` stores, centred and with a branch, against its own dequantization."""
    from kontext.quant.quantize import dequantize_weight, quantize_weight
    from kontext.quant.recipe import Layer
    from kontext.quant.statistics import InputStatistics
    from kontext.quant.weight_layout import weight_layout

    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(128, 64, generator=generator), torch.randn(2, 5, 128, generator=generator)
    x[..., 3] *= 40
    statistics = InputStatistics.empty(128)
    statistics.add(x, 0)
    stored = Layer(*layer, centred=layer[0] == "int8")
    if static:
        stored = Layer(*layer, "int8", True, "static", True)
    tensors = quantize_weight(weight, stored, torch.float32, statistics)
    names = [f"l.weight{ending}" for ending, *_ in weight_layout(stored, (128, 64))]
    path = tmp_path / "w.safetensors"
    save_file({**dict(zip(names, tensors, strict=True)), "l.bias": torch.ones(64)}, path)
    file = weights.WeightFile(path, torch.device("cpu"), torch.float32)
    linear = file.linear("l", 128, 64)
    file.close()
    found = dict(zip(names, tensors, strict=True))
    dense = dequantize_weight(tensors, stored)
    offset = torch.ones(64)
    if stored.scaled:
        dense = dense * found["l.weight_input_factor"][:, None]
    if stored.centred:
        offset += found["l.weight_mean_output"] - found["l.weight_input_mean"] @ dense
    expected = x @ dense + offset
    assert linear.channels == 64
    assert torch.allclose(linear.apply(x), expected, atol=2e-4)
    kernel = KernelLinear.of(linear, "16-bit")
    out = torch.empty(2, 5, 64)
    with Capture():
        kernel.product(kernel.joined(x, None), out)
    assert torch.allclose(out, expected, atol=2e-4)
    # The mean leaves the modulation's shift.
    shift, scale = (torch.randn(2, 128, generator=generator) * 0.1 for _ in range(2))
    normalized = torch.nn.functional.layer_norm(x, (128,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
    kernel.product(kernel.normalized(x, shift, scale), out)
    assert torch.allclose(out, normalized @ dense + offset, atol=2e-4)
    if static:
        # Rounded for each token, not with the static scale: that is for graphs.
        kernel = KernelLinear.of(linear, "int8")
        assert not kernel.static
        for given, wanted in (
            (kernel.joined(x, None), expected),
            (kernel.normalized(x, shift, scale), normalized @ dense + offset),
        ):
            kernel.product(given, out)
            assert float((out - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize("value", [0.0, -0.5, 1e-40, float("nan"), float("inf")])
@pytest.mark.parametrize("format", ["nvfp4", "fp8"])
def test_scales_of_inputs_are_positive_numbers(tmp_path: Path, format: str, value: float) -> None:
    """Oracle: dividing by it must give a finite number of the same sign, by definition of a scale."""
    path = stored_linear(tmp_path, format, torch.tensor(value))
    with pytest.raises(KontextError, match=r"x\.weight_input_scale is .* must be a positive number"):
        weights.WeightFile(path, CPU, torch.float32).linear("x", 64, 48, bias=False)


def test_small_scales_of_inputs_are_kept_in_fp16(tmp_path: Path) -> None:
    """Oracle: the number that was stored, which fp16 does not have."""
    path = stored_linear(tmp_path, "nvfp4", torch.tensor(1e-9))
    read = weights.WeightFile(path, CPU, torch.float16).linear("x", 64, 48, bias=False)
    assert read.input_scale is not None
    assert read.input_scale.item() == pytest.approx(1e-9)


def stored_linear(folder: Path, format: str, input_scale: torch.Tensor) -> Path:
    """A file of one linear [64, 48] in a number format, with a scale of its inputs."""
    weight = torch.randn(64, 48, generator=torch.Generator().manual_seed(1))
    record = FORMATS[format]
    tensors = {
        f"x.weight{spec.suffix}": tensor.contiguous()
        for spec, tensor in zip(record.tensors, record.quantize(weight, torch.float32), strict=True)
    }
    path = folder / "one.safetensors"
    save_file({**tensors, "x.weight_input_scale": input_scale}, str(path))
    return path
