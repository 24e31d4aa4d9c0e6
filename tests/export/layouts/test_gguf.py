"""`--to gguf`: its bytes against the gguf package's own writer, and its numbers in every program that reads it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from kontext.bench.quantspeed import stable_diffusion_cpp  # noqa: E402
from kontext.errors import KontextError  # noqa: E402
from kontext.export.cli.main import main  # noqa: E402
from kontext.export.layouts import gguf as layout  # noqa: E402
from kontext.export.layouts.gguf_types import TYPES, form_of  # noqa: E402
from kontext.export.layouts.source import WeightSource  # noqa: E402
from kontext.export.weights.write import write_stream  # noqa: E402
from kontext.model.build_network import build_network  # noqa: E402
from kontext.model.checkpoint import Checkpoint, load_state  # noqa: E402
from kontext.model.config import KontextConfig, TransformerConfig  # noqa: E402
from kontext.model.diffusers_folder import save_diffusers  # noqa: E402
from kontext.model.gguf_file import open_gguf  # noqa: E402
from kontext.model.networks import NETWORKS  # noqa: E402
from kontext.quant import ggml  # noqa: E402
from kontext.quant.recipe import choose_recipe  # noqa: E402
from kontext.quant.statistics import InputStatistics, Statistics  # noqa: E402

# fmt: off
DIFFERENT = (
    "F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K",
    "IQ4_NL", "IQ4_XS",
)
# fmt: on
"""Types whose files differ in more than their numbers."""

PACKAGED = [name for name, kind in TYPES.items() if not kind.needs_library]


def wide_config(tiny: Path) -> KontextConfig:
    """As `tiny_checkpoint`, with rows of whole blocks of 256 and heads of FLUX's 128."""
    config = Checkpoint.open(tiny).config
    transformer = TransformerConfig(
        hidden_size=256,
        num_heads=2,
        num_double_blocks=1,
        num_single_blocks=1,
        text_dim=config.transformer.text_dim,
        pooled_dim=config.transformer.pooled_dim,
    )
    return dataclasses.replace(config, name="kontext-wide", transformer=transformer)


def make_checkpoint(folder: Path, config: KontextConfig, tokenizers: Path) -> Path:
    """A diffusers folder with random weights in bf16."""
    generator = torch.Generator().manual_seed(20261201)
    weights = {name: build_network(name, config).state_dict() for name in NETWORKS}
    for state in weights.values():
        for key, tensor in state.items():
            noise = torch.randn(tensor.shape, generator=generator)
            state[key] = (noise / tensor[0].numel() ** 0.5 if tensor.ndim > 1 else 1 + noise / 8).bfloat16()
    save_diffusers(folder, config, weights)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(tokenizers / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    return make_checkpoint(folder, wide_config(tiny_checkpoint), tiny_checkpoint)


@pytest.fixture
def library() -> None:
    if (missing := ggml.why_missing()) is not None:
        pytest.skip(f"needs {missing}")


@pytest.fixture(params=DIFFERENT)
def type_name(request: pytest.FixtureRequest) -> str:
    """Every type whose file differs from the others'."""
    name = str(request.param)
    if TYPES[name].needs_library:
        request.getfixturevalue("library")
    return name


def source_of(
    checkpoint: Path, name: str, compute: str = "bf16", statistics: Statistics | None = None
) -> WeightSource:
    opened = Checkpoint.open(checkpoint)
    measure = None if statistics is None else lambda: statistics
    return WeightSource(opened, choose_recipe(tuple(NETWORKS), 1, compute), name, measure)


def written(source: WeightSource, path: Path) -> Path:
    (stream,) = layout.plan(source).values()
    write_stream(stream, path, 0, lambda _: None, lambda _: None)
    return path


def native(checkpoint: Path) -> dict[str, torch.Tensor]:
    state = load_state(checkpoint)
    return {**state["modulation"], **state["transformer"]}


def by_the_package(path: Path) -> dict[str, np.ndarray]:
    """Tensor → fp32 numbers, by the gguf package's reader."""
    result = {}
    for tensor in gguf.GGUFReader(path).tensors:
        shape = tensor.shape[::-1].tolist()
        result[tensor.name] = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
    return result


@pytest.mark.parametrize("name", PACKAGED)
def test_bytes_are_those_of_the_packages_writer(wide_checkpoint: Path, tmp_path: Path, name: str) -> None:
    """A file that GGUFWriter writes with all tensors in memory, as ComfyUI-GGUF's convert.py does."""
    path = written(source_of(wide_checkpoint, name), tmp_path / "ours.gguf")
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "flux")
    writer.add_name("kontext-wide")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(TYPES[name].number)
    for key, tensor in native(wide_checkpoint).items():
        kind = gguf.GGMLQuantizationType[form_of(TYPES[name], key, tuple(tensor.shape), "BF16")]
        writer.add_tensor(key, gguf.quants.quantize(tensor.float().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert path.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_both_readers_find_the_same_numbers(wide_checkpoint: Path, tmp_path: Path, type_name: str) -> None:
    path = written(source_of(wide_checkpoint, type_name), tmp_path / "x.gguf")
    ours, theirs, weights = open_gguf(path), by_the_package(path), native(wide_checkpoint)
    assert ours.architecture == "flux"
    assert ours.tensors.keys() == theirs.keys() == weights.keys()
    for key, tensor in weights.items():
        stored = ours.tensors[key]
        assert (stored.shape, stored.start % 32) == (tuple(tensor.shape), 0)
        assert stored.dtype == form_of(TYPES[type_name], key, stored.shape, "BF16")
        values = stored.read().float()
        assert np.array_equal(values.numpy(), theirs[key])
        if stored.dtype in ("F32", "BF16"):  # the model's own numbers
            assert torch.equal(values, tensor.float())
        error = (values - tensor.float()).square().mean().sqrt() / tensor.float().square().mean().sqrt()
        bits = int("".join(filter(str.isdigit, stored.dtype.partition("_")[0])))
        assert error < 2.0 ** -(bits - 0.6)


@pytest.mark.parametrize(("compute", "name"), [("fp32", "F32"), ("fp16", "F16"), ("bf16", "BF16")])
def test_without_a_type_it_is_the_compute_format(
    wide_checkpoint: Path, tmp_path: Path, compute: str, name: str
) -> None:
    plain = written(source_of(wide_checkpoint, "", compute), tmp_path / "plain.gguf")
    named = written(source_of(wide_checkpoint, name, compute), tmp_path / "named.gguf")
    assert plain.read_bytes() == named.read_bytes()
    tensors = open_gguf(plain).tensors
    assert tensors["img_in.weight"].dtype == tensors["single_blocks.0.linear1.weight"].dtype == name
    quantized = open_gguf(written(source_of(wide_checkpoint, "Q8_0", compute), tmp_path / "q.gguf")).tensors
    assert quantized["img_in.weight"].dtype == name


def test_a_killed_export_goes_on(wide_checkpoint: Path, tmp_path: Path) -> None:
    source = source_of(wide_checkpoint, "Q8_0")
    whole = written(source, tmp_path / "whole.gguf").read_bytes()
    (stream,) = layout.plan(source).values()
    path = tmp_path / "part.gguf"
    middle = stream.pieces[7].start + 100
    path.write_bytes(whole[:middle] + bytes(500))
    write_stream(stream, path, middle, lambda _: None, lambda _: None)
    assert path.read_bytes() == whole
    assert stream.size == len(whole)


def measured(checkpoint: Path) -> Statistics:
    """Statistics of inputs whose every fourth channel is ten times as large."""
    statistics = Statistics(about={"samples": "scenes", "count": 4})
    for network in ("modulation", "transformer"):
        for name, shape in Checkpoint.open(checkpoint).networks[network].shapes.items():
            if len(shape) == 2:
                found = InputStatistics.empty(shape[1])
                rows = torch.randn(32, shape[1], generator=torch.Generator().manual_seed(len(name)))
                rows[:, ::4] *= 10
                found.add(rows, 0)
                statistics.inputs.setdefault(network, {})[name] = found
    return statistics


@pytest.mark.usefixtures("library")
def test_importance_is_the_mean_square_of_inputs(wide_checkpoint: Path, tmp_path: Path) -> None:
    statistics = measured(wide_checkpoint)
    path = written(source_of(wide_checkpoint, "Q4_K_M", statistics=statistics), tmp_path / "x.gguf")
    reader = gguf.GGUFReader(path)
    assert reader.get_field("quantize.imatrix.dataset").contents() == "scenes"
    assert reader.get_field("quantize.imatrix.entries_count").contents() == 13
    weights, tensors = native(wide_checkpoint), {each.name: each for each in reader.tensors}
    for name, network in (
        ("double_blocks.0.img_attn.qkv.weight", "transformer"),
        ("single_blocks.0.linear2.weight", "transformer"),
        ("single_blocks.0.modulation.lin.weight", "modulation"),
    ):
        form = tensors[name].tensor_type.name
        importance = statistics.inputs[network][name].mean_square()
        expected = ggml.quantize_rows(form, weights[name], importance)
        assert torch.equal(torch.from_numpy(tensors[name].data.copy()).reshape(-1), expected)
        assert not torch.equal(ggml.quantize_rows(form, weights[name]), expected)


def test_the_summary_says_which_formats_there_are(tiny_checkpoint: Path, wide_checkpoint: Path) -> None:
    """The random checkpoint has rows of 64, and of 256 and 320 in what follows the MLPs."""
    assert layout.precision(source_of(wide_checkpoint, "BF16")) == ["BF16 100% of the weights"]
    assert layout.precision(source_of(tiny_checkpoint, "Q4_K_M", "fp32")) == [
        "Q5_0 62%, F32 21%, Q4_K 10%, Q5_1 7% of the weights",
        "12 matrices are Q5_0: their rows are no multiple of 256, which Q4_K needs",
        "2 matrices are Q5_1: their rows are no multiple of 256, which Q5_K needs",
        "all columns count the same: --calibrate DIR weighs them by their importance in edits",
    ]
    weighed = source_of(wide_checkpoint, "Q6_K", statistics=measured(wide_checkpoint))
    assert layout.precision(weighed)[1:] == ["columns weighed by their importance in 4 edits of scenes"]


@pytest.mark.usefixtures("library")
def test_a_type_that_no_weight_can_have_is_refused(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "form_of", lambda *_: "Q5_0")
    with pytest.raises(
        KontextError, match="--to gguf:Q4_K needs rows of 256 weights, and those of kontext-random"
    ):
        layout.plan(source_of(tiny_checkpoint, "Q4_K"))


def test_the_library_is_asked_for(wide_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ggml.VARIABLE, raising=False)
    with pytest.raises(
        KontextError, match="--to gguf:Q4_K_S needs ggml's library: set GGML_LIBRARY to a libggml"
    ):
        layout.plan(source_of(wide_checkpoint, "Q4_K_S"))
    layout.plan(source_of(wide_checkpoint, "Q4_0"))


def test_a_weight_that_does_not_fit_is_named(wide_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "large"
    shutil.copytree(wide_checkpoint, folder)
    (file,) = (folder / "transformer").glob("*.safetensors")
    tensors = load_file(file)
    tensors["single_transformer_blocks.0.proj_out.weight"][1, 2] = 1e5  # 99840 in bf16
    save_file(tensors, file)
    with pytest.raises(
        KontextError, match=r"single_blocks.0.linear2.weight: 9.98e\+04 does not fit into Q8_0"
    ):
        written(source_of(folder, "Q8_0"), tmp_path / "x.gguf")
    written(source_of(folder, "BF16"), tmp_path / "x.gguf")


# -- the command --


def export(*words: object) -> int:
    return main([str(word) for word in (*words, "--quiet")])


@pytest.mark.parametrize(("compute", "name"), [("fp32", "F32"), ("bf16", "BF16")])
def test_the_way_back_has_the_models_numbers(
    tiny_checkpoint: Path, tmp_path: Path, compute: str, name: str
) -> None:
    """MODEL → gguf → another layout: byte for byte the file without the detour."""
    assert export(tiny_checkpoint, "--to", f"gguf:{name}", "-o", tmp_path / "x.gguf") == 0
    for words in (
        (tiny_checkpoint, "-o", tmp_path / "direct.safetensors"),
        (tmp_path / "x.gguf", "--base", tiny_checkpoint, "-o", tmp_path / "again.safetensors"),
    ):
        assert export(*words, "--to", "bfl", f"--{compute}") == 0
    assert (tmp_path / "direct.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_what_is_made_of_a_quantized_file_has_its_numbers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, output = tmp_path / "x.gguf", tmp_path / "x.safetensors"
    assert export(tiny_checkpoint, "--to", "gguf:Q5_1", "-o", path) == 0
    assert export(path, "--base", tiny_checkpoint, "--to", "bfl", "--fp32", "-o", output) == 0
    found, values = load_file(output), by_the_package(path)
    assert found.keys() == values.keys()
    assert all(np.array_equal(found[name].numpy(), each) for name, each in values.items())


def test_loras_are_fused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    weight = native(tiny_checkpoint)["single_blocks.0.linear2.weight"]
    down, up = torch.randn(2, weight.shape[1]), torch.randn(len(weight), 2)
    module = "transformer.single_transformer_blocks.0.proj_out"
    lora = tmp_path / "lora.safetensors"
    save_file({f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}, lora)
    words = (tiny_checkpoint, "--lora", f"{lora}:0.5", "--to", "gguf:F32", "-o", tmp_path / "x.gguf")
    assert export(*words) == 0
    found = by_the_package(tmp_path / "x.gguf")["single_blocks.0.linear2.weight"]
    np.testing.assert_allclose(found, (weight + 0.5 * up @ down).numpy(), atol=1e-5)


@pytest.mark.usefixtures("library")
def test_the_embedded_model_is_weighed_by_what_is_shipped(tmp_path: Path) -> None:
    assert export("--to", "gguf:Q4_K", "-o", tmp_path / "x.gguf") == 0
    assert export("--to", "gguf:Q4_K", "--calibrate", "none", "-o", tmp_path / "plain.gguf") == 0
    weighed, plain = (gguf.GGUFReader(tmp_path / f"{name}.gguf") for name in ("x", "plain"))
    assert weighed.get_field("quantize.imatrix.dataset").contents() == "scenes"
    assert weighed.get_field("quantize.imatrix.entries_count").contents() == 32
    assert plain.get_field("quantize.imatrix.dataset") is None
    pairs = zip(weighed.tensors, plain.tensors, strict=True)
    different = {
        ours.tensor_type.name for ours, theirs in pairs if not np.array_equal(ours.data, theirs.data)
    }
    assert different == {"Q4_K", "Q5_0"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--to gguf:Q7_K",
            "gguf has no variant 'Q7_K': choose from gguf:F32, gguf:F16, gguf:BF16, gguf:Q8_0",
        ),
        ("--to gguf --int4", "--to gguf cannot hold --int4: it holds --bf16, --fp16, --fp32"),
        ("--to gguf:BF16 --fp16", "--to gguf:BF16 is --bf16: leave --fp16 out"),
        ("--to gguf:Q4_0 --calibrate edits", "--calibrate only applies with --to gguf:Q6_K, gguf:Q5_K"),
        (
            "--to gguf:Q4_K",
            "--to gguf:Q4_K needs ggml's library: set GGML_LIBRARY to a libggml-base.so (npm pack",
        ),
    ],
)
def test_errors(
    words: str,
    message: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(ggml.VARIABLE, raising=False)
    assert export(tiny_checkpoint, *words.split(), "-o", tmp_path / "x.gguf") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


# -- other programs' readers --


def inputs(dtype: torch.dtype = torch.float32) -> Mapping[str, torch.Tensor]:
    """What diffusers' network takes: 6 image tokens and 5 text tokens."""
    generator = torch.Generator().manual_seed(3)
    places = torch.zeros(6, 3)
    places[:, 1], places[:, 2] = torch.arange(6) // 3, torch.arange(6) % 3
    return {
        "hidden_states": torch.randn(1, 6, 64, generator=generator),
        "encoder_hidden_states": torch.randn(1, 5, 48, generator=generator),
        "pooled_projections": torch.randn(1, 32, generator=generator),
        "timestep": torch.tensor([0.7]),
        "guidance": torch.tensor([2.5]),
        "img_ids": places,
        "txt_ids": torch.zeros(5, 3),
    }


def reference_network(checkpoint: Path, values: Mapping[str, np.ndarray]) -> torch.nn.Module:
    """diffusers' network in fp32, with `values` under native names."""
    from diffusers import FluxTransformer2DModel

    from kontext.model.layouts import network_sources

    config = Checkpoint.open(checkpoint).config
    network = FluxTransformer2DModel.from_pretrained(
        checkpoint, subfolder="transformer", torch_dtype=torch.float32
    )
    state = {}
    for name in ("modulation", "transformer"):
        for key, part in network_sources(name, config).items():
            width, mlp = config.transformer.hidden_size, config.transformer.mlp_size
            rows = (
                [width, width, width, mlp][: len(part.parts)] if len(part.parts) > 1 else [len(values[key])]
            )
            state |= part.split(torch.from_numpy(values[key].copy()), rows)
    network.load_state_dict(state)
    return network


def test_diffusers_multiplies_with_these_numbers(
    wide_checkpoint: Path, tmp_path: Path, type_name: str, small_converter: Callable[[int], None]
) -> None:
    """FluxTransformer2DModel.from_single_file with GGUFQuantizationConfig."""
    diffusers = pytest.importorskip("diffusers")
    from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor

    path = written(source_of(wide_checkpoint, type_name), tmp_path / "x.gguf")
    values = by_the_package(path)
    small_converter(256)
    read = diffusers.FluxTransformer2DModel.from_single_file(
        str(path),
        config=str(wide_checkpoint),
        subfolder="transformer",
        quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32),
        torch_dtype=torch.float32,
    )
    expected, network = reference_network(wide_checkpoint, values), read.state_dict()
    assert network.keys() == expected.state_dict().keys()
    multiplied = {}
    for name, tensor in expected.state_dict().items():
        found = multiplied[name] = network[name]
        if isinstance(found, GGUFParameter):
            # It dequantizes in fp16, with an error of a few roundings.
            multiplied[name] = dequantize_gguf_tensor(found)
            assert (multiplied[name].float() - tensor).abs().max() <= 2.0**-9 * tensor.abs().max()
            found = torch.from_numpy(gguf.quants.dequantize(found.numpy(), found.quant_type))
        assert torch.equal(found.float(), tensor), name
    expected.load_state_dict({name: tensor.float() for name, tensor in multiplied.items()})
    with torch.no_grad():
        ours, theirs = (each(**inputs(), return_dict=False)[0] for each in (expected, read))
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.skipif(
    not {"COMFYUI", "COMFYUI_GGUF"} <= os.environ.keys(), reason="COMFYUI and COMFYUI_GGUF name no checkouts"
)
def test_comfyui_multiplies_with_these_numbers(wide_checkpoint: Path, tmp_path: Path) -> None:
    """ComfyUI-GGUF's loader and operators in ComfyUI's Flux: CONTRIBUTING.md says how to get both."""
    able = [name for name in DIFFERENT if ggml.why_missing() is None or not TYPES[name].needs_library]
    files = [written(source_of(wide_checkpoint, name), tmp_path / f"{name}.gguf") for name in able]
    save_file(dict(inputs()), tmp_path / "inputs.safetensors")
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    script = Path(__file__).with_name("comfyui_gguf_reader.py")
    places = [os.environ["COMFYUI"], os.environ["COMFYUI_GGUF"], tmp_path / "inputs.safetensors"]
    done = subprocess.run([python, script, *places, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for file in files:
        found, values = load_file(file.with_suffix(".safetensors")), by_the_package(file)
        output = found.pop("output")
        assert found.keys() == values.keys()
        for name, tensor in found.items():
            assert np.array_equal(tensor.numpy(), values[name]), f"{file.name}: {name}"
        with torch.no_grad():
            expected = reference_network(wide_checkpoint, values)(**inputs(), return_dict=False)[0]
        assert torch.allclose(output, expected, atol=1e-4), file.name


@pytest.mark.skipif(
    "STABLE_DIFFUSION_PYTHON" not in os.environ, reason="STABLE_DIFFUSION_PYTHON names no environment"
)
def test_stable_diffusion_cpp_edits_with_these_numbers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """BF16's and Q8_0's pictures are those that it makes of the safetensors file, which it converts itself; the other
    formats it rounds with an importance of ones. CONTRIBUTING.md says how to get it."""
    config = stable_diffusion_cpp.fitted(wide_config(tiny_checkpoint))
    checkpoint = make_checkpoint(tmp_path / "checkpoint", config, tiny_checkpoint)
    folder = tmp_path / "files"
    stable_diffusion_cpp.write_files(checkpoint, config, folder)
    decoder = load_file(folder / stable_diffusion_cpp.AUTOENCODER)
    last = next(name for name, tensor in decoder.items() if name.endswith("weight") and len(tensor) == 3)
    decoder[last] *= 8  # a picture that is neither black nor white
    decoder[last.replace("weight", "bias")].fill_(0.5)
    save_file(decoder, folder / stable_diffusion_cpp.AUTOENCODER)
    safetensors = folder / stable_diffusion_cpp.TRANSFORMER
    able = ["BF16", "F16", "Q8_0", "Q5_1", *(() if ggml.why_missing() else ("Q4_K_M", "Q2_K", "IQ4_XS"))]
    for name in able:
        written(source_of(checkpoint, name), folder / name)
    models = [*(folder / name for name in able), safetensors, f"{safetensors}=q8_0"]
    script = Path(__file__).with_name("stable_diffusion_cpp_reader.py")
    words = [os.environ["STABLE_DIFFUSION_PYTHON"], script, folder, *models]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pictures = {path.name.removesuffix(".png"): Image.open(path) for path in folder.glob("*.png")}
    assert all(np.asarray(picture).std() > 10 for picture in pictures.values())
    for name, own in (("BF16.", "flux.safetensors."), ("Q8_0.", "flux.safetensors.q8_0")):
        assert np.array_equal(*(np.asarray(pictures[each]) for each in (name, own))), name
    assert len({picture.tobytes() for picture in pictures.values()}) == len(able)
