"""Engines: profiles, names, manifest entries and errors; every graph of the embedded model in the real compiler.

TensorRT for RTX compiles for cards that this machine lacks, so its compiler is tested on any machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
trt = pytest.importorskip("tensorrt_rtx")

from kontext.errors import KontextError  # noqa: E402
from kontext.export.bundle.preferred_sizes import FLUX_SIZES  # noqa: E402
from kontext.export.cli import main  # noqa: E402
from kontext.export.engines import build as engines  # noqa: E402
from kontext.export.engines import process as engine_process  # noqa: E402
from kontext.export.engines.build import (  # noqa: E402
    EngineOptions,
    build_engines,
    manifest_entry,
    parse_targets,
    resolve_options,
)
from kontext.export.engines.formats import GraphFormats, best_weights, check_bundle, formats_of  # noqa: E402
from kontext.export.engines.process import BuilderProcess  # noqa: E402
from kontext.export.engines.profiles import evaluate, profiles  # noqa: E402
from kontext.runtime.bundle import GRAPHS, Bundle  # noqa: E402
from kontext.runtime.cuda_driver import has_gpu  # noqa: E402
from kontext.runtime.engines import choose_engines  # noqa: E402

needs_no_gpu = pytest.mark.skipif(has_gpu(), reason="about machines without a GPU")

MATRIX = [
    ("sm86", "fp16"),
    ("sm86", "fp16-int4"),
    ("sm89", "bf16-fp8"),
    ("sm89", "bf16-nf4"),
    ("sm120", "bf16"),
    ("sm120", "bf16-int4"),
]
"""Architectures of GeForce 30, 40 and 50, each with two of the number formats that it supports, and each format."""


# -- every graph, pattern and profile through the compiler --


@pytest.mark.parametrize(("target", "name"), MATRIX)
def test_every_graph_of_the_embedded_model_compiles(
    embedded_bundles: Any, tmp_path: Path, target: str, name: str
) -> None:
    folder = Path(shutil.copytree(embedded_bundles(name), tmp_path / "bundle"))
    options = EngineOptions("rtx", (target,))
    summary = build_engines(folder, options)
    assert len(summary.built) == len(GRAPHS)
    bundle = Bundle.open(folder)
    bundle.verify()
    chosen = choose_engines(bundle, "rtx", trt.__version__, target)
    assert {entry.path for entry in chosen.values()} == set((folder / "engines" / target).iterdir())
    again = build_engines(folder, options)
    assert not again.built
    assert sorted(again.reused) == sorted(summary.built)


@pytest.mark.parametrize("graph", ["modulation", "text_encoder_2"])
@pytest.mark.parametrize("stream", [False, True])
def test_engines_with_their_weights_inside(
    embedded_bundles: Any, tmp_path: Path, graph: str, stream: bool
) -> None:
    """Larger than the engine whose weights are inputs, by the weights; with weight streaming too."""
    bundle, sizes = Bundle.open(embedded_bundles("bf16")), {}
    for weights in ("bound", "inside"):
        job = job_of(bundle, graph, tmp_path / weights, weights)
        job["stream"] = stream and weights == "inside"
        with BuilderProcess("rtx") as builder:
            sizes[weights] = builder.build(job, lambda *_: None)["size"]
    assert sizes["inside"] - sizes["bound"] > 0.5 * bundle.graphs[graph].weights.stat().st_size


@pytest.mark.parametrize(
    ("weights", "least", "streams"), [("inside", 1, True), ("bound", 1, False), ("inside", 1 << 30, False)]
)
def test_engines_with_many_weights_can_stream_them(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, weights: str, least: int, streams: bool
) -> None:
    """Both the manifest and the compiler's job say so."""
    monkeypatch.setattr(engines, "STREAMED_BYTES", least)
    bundle, options = Bundle.open(tiny_bundle), EngineOptions("rtx", ("sm89",), weights)
    entry = engines.manifest_entry(bundle, "transformer", "sm89", options, trt.__version__)
    assert entry.get("streams", False) == streams
    assert engines.compiler_job(bundle, entry, options)["stream"] == streams


def test_fp32_attention_is_refused_by_the_compiler_and_before_it(tiny_bundle: Path, tmp_path: Path) -> None:
    job = job_of(Bundle.open(tiny_bundle), "transformer", tmp_path / "engine", "bound")
    with BuilderProcess("rtx") as builder:
        with pytest.raises(
            KontextError, match=r"engine of transformer for sm89 cannot be built: .*Attention"
        ):
            builder.build(job, lambda *_: None)
    assert not list(tmp_path.glob("engine*"))
    with pytest.raises(KontextError, match=r"computes in fp32, .* export with --bf16 or --fp16"):
        build_engines(tiny_bundle, EngineOptions("rtx", ("sm89",), "bound"))


def job_of(bundle: Bundle, graph: str, output: Path, weights: str) -> dict[str, Any]:
    options = EngineOptions("rtx", ("sm89",), weights)
    entry = engines.manifest_entry(bundle, graph, "sm89", options, trt.__version__)
    return engines.compiler_job(bundle, entry, options) | {"output": str(output)}


def test_ctrl_c_stops_at_once_and_keeps_what_is_finished(embedded_bundles: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(embedded_bundles("bf16"), tmp_path / "bundle"))
    words = [
        sys.executable,
        "-m",
        "kontext.export.cli.main",
        str(folder),
        "--engine",
        "rtx",
        "--target",
        "sm89",
    ]
    process = subprocess.Popen(
        [*words, "--engine-weights", "bound"],
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in a shell's background, SIGINT is ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while len(json.loads((folder / "manifest.json").read_text())["engines"]) < 1:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert said.strip() == ("interrupted; finished engines are kept, and the same command resumes")
    bundle = Bundle.open(folder)
    bundle.verify()
    assert 1 <= len(bundle.manifest["engines"]) < len(GRAPHS)
    assert not list(folder.rglob("*.tmp"))
    assert not any(str(folder) in command for command in running())


def running() -> list[str]:
    """The command lines of this user's processes, and the files they have open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.append((process / "cmdline").read_bytes().decode(errors="replace"))
            found += [os.readlink(each) for each in (process / "fd").iterdir()]
    return found


# -- profiles --


def flux_sized(bundle: Bundle) -> Bundle:
    sampler = dataclasses.replace(bundle.sampler, preferred_sizes=FLUX_SIZES)
    t5 = dataclasses.replace(bundle.tokenizers["t5"], max_length=512)
    return dataclasses.replace(bundle, sampler=sampler, tokenizers={**bundle.tokenizers, "t5": t5})


def profile_use(bundle: Bundle, graph: str, **sizes: int) -> str:
    """The profile that takes a graph's inputs with these sizes."""
    inputs = engines.graph_inputs(bundle, graph)
    ranges = {name: (size, size, size) for name, size in sizes.items()}
    shapes = {
        name: tuple(size if isinstance(size, int) else evaluate(size, ranges, 0) for size in shape)
        for name, shape in inputs.items()
    }
    for profile in profiles(bundle, graph, 2, inputs):
        if profile.takes(shapes):
            return profile.use
    return "none"


@pytest.mark.parametrize("flux", [True, False])
def test_profiles_cover_all_preferred_sizes(tiny_bundle: Path, flux: bool) -> None:
    bundle = Bundle.open(tiny_bundle)
    if flux:
        bundle = flux_sized(bundle)
    text = bundle.tokenizers["t5"].max_length
    counts = [width * height // 256 for width, height in bundle.sampler.preferred_sizes]
    if flux:
        assert (len(counts), min(counts), max(counts)) == (17, 4042, 4150)
    for target in counts:
        for references, use in (
            ([], "no reference"),
            ([min(counts)], "one reference"),
            ([max(counts)], "one reference"),
            ([min(counts)] * 2, "2 to 4 references"),
            ([max(counts)] * 4, "2 to 4 references"),
        ):
            sizes = {"target_tokens": target, "reference_tokens": sum(references), "text_tokens": text}
            assert profile_use(bundle, "transformer", batch=2, **sizes) == use
    for width, height in bundle.sampler.preferred_sizes:
        sizes = {"latent_height": height // 8, "latent_width": width // 8}
        for graph in ("vae_encoder", "vae_decoder"):
            assert profile_use(bundle, graph, batch=1, **sizes) == "pictures"
    assert profile_use(bundle, "modulation", rows=28) == "steps"
    assert profile_use(bundle, "text_encoder", batch=2) == "prompts"
    assert profile_use(bundle, "text_encoder", batch=3) == "none"


# -- options --


def test_targets_are_spelled_as_in_the_manifest() -> None:
    assert parse_targets("sm_86, 8.9,sm86") == ("sm86", "sm89")
    with pytest.raises(KontextError, match="'ada' is not a GPU architecture"):
        parse_targets("sm89,ada")


@needs_no_gpu
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (EngineOptions("rtx", ("sm90",)), r"builds for sm75, .*sm89, .* not for sm90"),
        (EngineOptions("rtx"), "this machine has no GPU to build for: name the architectures"),
        (
            EngineOptions("rtx", ("sm89",), "stripped"),
            "needs a GPU in this machine to build stripped engines",
        ),
        (EngineOptions("rtx", ("sm89",), "nowhere"), "--engine-weights is one of stripped, bound, inside"),
        (EngineOptions("rtx", ("sm89",), batch=0), "--engine-batch must be 1 or more, not 0"),
    ],
)
def test_what_cannot_be_built_here(options: EngineOptions, message: str) -> None:
    with pytest.raises(KontextError, match=message):
        resolve_options(options)


@pytest.mark.parametrize(
    ("formats", "gpu", "kept"),
    [
        (GraphFormats("bf16", (), ()), True, "stripped"),
        (GraphFormats("bf16", (), ()), False, "bound"),
        (GraphFormats("fp16", ("fp8",), ()), False, "bound"),
        (GraphFormats("bf16", ("fp8",), ("fp8",)), False, "inside"),
        (GraphFormats("fp16", ("int4",), ()), False, "inside"),
        (GraphFormats("fp16", ("nvfp4",), ("nvfp4",), (), (), ("nvfp4",)), False, "inside"),
    ],
)
def test_where_weights_are_best_kept(formats: GraphFormats, gpu: bool, kept: str) -> None:
    assert best_weights(formats, gpu) == kept


def test_the_other_library_builds_for_the_gpu_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare:
        __version__ = "11.0"

    monkeypatch.setattr(engines, "load_library", lambda name: Bare)
    monkeypatch.setattr(engines, "has_gpu", lambda: False)
    with pytest.raises(KontextError, match="TensorRT builds only for the GPU of this machine"):
        resolve_options(EngineOptions("tensorrt", ("sm90",)))


@pytest.mark.parametrize(
    ("networks", "layers", "target", "message"),
    [
        ({"transformer": "bf16"}, {}, "sm75", "sm75 does not compute in bf16"),
        ({"text_encoder_2": "fp32"}, {}, "sm75", r"does not multiply in fp32 on sm75 \(text_encoder_2\)"),
        (
            {"transformer": "fp16"},
            {"transformer": {"w": "fp8"}},
            "sm86",
            r"sm86 does not compute in fp8 \(transformer\)",
        ),
        (
            {"transformer": "fp16"},
            {"transformer": {"w": {"format": "fp8"}}},
            "sm86",
            "sm86 does not compute in fp8",
        ),
        ({}, {"modulation": {"w": {"format": "int8", "activations": "int8"}}}, "sm89", "with --weight-only"),
        (
            {},
            {
                "transformer": {
                    "w": {"format": "int8", "activations": "int8", "rounding": "static"},
                    "v": "int4",
                }
            },
            "sm75",
            r"sm75 does not compute in int4 \(transformer\): export with --int8 --weight-only",
        ),
        (
            {},
            {"transformer": {"w": {"format": "fp8", "activations": "fp8"}}},
            "sm86",
            "export with --int8 --static-inputs",
        ),
        (
            {"transformer": "bf16"},
            {"transformer": {"w": {"format": "nvfp4", "activations": "nvfp4"}}},
            "sm89",
            r"sm89 does not compute in nvfp4 \(transformer\): export with --int4$",
        ),
        ({}, {"transformer": {"w": "nvfp4"}}, "sm75", "nvfp4 .*: export with --int8 --weight-only$"),
        ({}, {"text_encoder_2": {"w": "uint4"}}, "sm89", r"does not take uint4 \(text_encoder_2\)"),
    ],
)
def test_formats_that_a_card_has_not(
    tiny_bundle: Path, networks: dict[str, str], layers: dict[str, Any], target: str, message: str
) -> None:
    noted = {"networks": dict.fromkeys(GRAPHS, "fp16") | networks, "layers": layers}
    bundle = Bundle.open(tiny_bundle)
    bundle = dataclasses.replace(bundle, manifest={**bundle.manifest, "precision": noted})
    with pytest.raises(KontextError, match=message):
        check_bundle(bundle, target)


def test_weights_that_are_unpacked_to_their_inputs_stay_inside(tiny_bundle: Path) -> None:
    layers = {"transformer": {"w": {"format": "int4", "activations": "int8", "rounding": "static"}}}
    noted = {"networks": dict.fromkeys(GRAPHS, "fp16"), "layers": layers}
    bundle = Bundle.open(tiny_bundle)
    bundle = dataclasses.replace(bundle, manifest={**bundle.manifest, "precision": noted})
    check_bundle(bundle, "sm86")
    with pytest.raises(KontextError, match="use --engine-weights inside"):
        check_bundle(bundle, "sm86", "bound")


def test_products_in_fp4_stay_in_the_range_of_fp16(tiny_bundle: Path) -> None:
    """They are scaled inside the product, those in E4M3 after it."""
    layers = {"transformer": {"w": {"format": "nvfp4", "activations": "nvfp4"}, "x": "nvfp4"}}
    noted = {"networks": dict.fromkeys(GRAPHS, "fp16"), "layers": layers}
    bundle = Bundle.open(tiny_bundle)
    bundle = dataclasses.replace(bundle, manifest={**bundle.manifest, "precision": noted})
    check_bundle(bundle, "sm120")
    assert formats_of(bundle, "transformer").blocks == ("nvfp4",)
    # Their scales are constants of every engine, which is then for these weights alone.
    options = EngineOptions("rtx", ("sm120",), "bound")
    rounded, plain = (
        manifest_entry(bundle, graph, "sm120", options, "1") for graph in ("transformer", "modulation")
    )
    assert (rounded["weights"], "weights_sha256" in rounded, "weights_sha256" in plain) == (
        "bound",
        True,
        False,
    )


def test_bundles_over_other_files(tiny_bundle: Path) -> None:
    bundle = dataclasses.replace(Bundle.open(tiny_bundle), links={"links/a": None})  # type: ignore[dict-item]
    with pytest.raises(KontextError, match="export without it"):
        check_bundle(bundle, "sm89")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "sm89", "-o", "x"], "--target only applies with --engine"),
        (
            ["{bundle}", "--engine", "rtx", "--fp8", "--force"],
            "MODEL is an existing bundle; --fp8 only applies when exporting a checkpoint (with -o)",
        ),
        (
            ["{bundle}", "--engine", "rtx", "--bf16", "--lora", "a:1"],
            "MODEL is an existing bundle; --lora, --bf16 only apply when exporting a checkpoint (with -o)",
        ),
        (["--engine", "rtx"], "--engine needs a bundle: name one as MODEL, or export one with -o OUT"),
    ],
)
def test_flags_that_cannot_be_combined(
    words: list[str], message: str, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([word.format(bundle=tiny_bundle) for word in words]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "--engine", "rtx", "--target", "sm89"], "error: nowhere does not exist"),
        (
            ["-o", "out", "--engine", "rtx", "--target", "sm89", "--fp32"],
            "TensorRT's attention needs 16-bit inputs",
        ),
        (["-o", "out", "--engine", "rtx", "--target", "sm89"], "TensorRT's attention needs 16-bit inputs"),
        (["-o", "out", "--engine", "rtx", "--target", "sm89", "--link-weights"], "leave out --link-weights"),
        (["-o", "out", "--engine", "rtx", "--target", "ada"], "error: 'ada' is not a GPU architecture"),
        pytest.param(["-o", "out", "--engine", "tensorrt"], "error: TensorRT", id="no library or no GPU"),
    ],
)
def test_errors_come_before_the_work(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.main(words) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# -- the manifest --


@pytest.fixture
def quick_builder(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A builder that writes its job instead of an engine; returns the graphs that it was to build."""
    built: list[str] = []

    def build(_self: BuilderProcess, job: dict[str, Any], phase: Any) -> dict[str, Any]:
        built.append(Path(job["graph"]).stem)
        phase("compiling", 1, 6)
        output = Path(job["output"])
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(job, sort_keys=True))
        return {"size": output.stat().st_size, "seconds": 1.0}

    monkeypatch.setattr(BuilderProcess, "build", build)
    monkeypatch.setattr(engines, "check_bundle", lambda *_: None)
    return built


OPTIONS = EngineOptions("rtx", ("sm89", "sm120"), "bound")


def test_engines_are_named_and_recorded(
    tiny_bundle: Path, tmp_path: Path, quick_builder: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    words = [str(folder), "--engine", "rtx", "--target", "sm89,sm120", "--engine-weights", "bound"]
    assert main.main(words) == 0
    assert "engines/sm89: 6 built" in capsys.readouterr().out
    bundle = Bundle.open(folder)
    bundle.verify()
    digest = bundle.files["transformer.onnx"].sha256[:8]
    names = [path.name for path in (folder / "engines" / "sm120").iterdir()]
    assert any(name.startswith(f"transformer-rtx{trt.__version__}-sm120-fp32-{digest}-") for name in names)
    entry = choose_engines(bundle, "rtx", trt.__version__, "sm120")["transformer"]
    assert (entry.weights, entry.precision, entry.largest_batch) == ("bound", "fp32", 4)
    assert [profile.use for profile in entry.profiles] == [
        "one reference",
        "no reference",
        "2 to 4 references",
    ]
    quick_builder.clear()
    assert main.main([*words, "--quiet"]) == 0
    assert not quick_builder
    assert capsys.readouterr().out == ""


def test_other_options_replace_and_killed_builds_leave_nothing(
    tiny_bundle: Path, tmp_path: Path, quick_builder: list[str]
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    build_engines(folder, OPTIONS)
    before = {path.name for path in folder.rglob("*.engine")}
    torn = folder / "engines" / "sm89" / ".transformer-rtx.engine.0123abcd.tmp"
    unrecorded = torn.with_name("transformer-rtx.engine")
    for path in (torn, unrecorded):
        path.write_bytes(b"half")
    build_engines(folder, dataclasses.replace(OPTIONS, batch=1))
    after = {path.name for path in folder.rglob("*.engine")}
    assert not torn.exists()
    assert not unrecorded.exists()
    # The modulation's and the autoencoder's sizes do not depend on the batch.
    assert len(after) == 12
    assert len(before & after) == 6
    Bundle.open(folder).verify()


def test_weights_inside_belong_to_one_export(
    tiny_bundle: Path, tmp_path: Path, quick_builder: list[str]
) -> None:
    """The same graph with other weights: an engine without weights is taken over, one with weights inside is not."""
    first, second = (Path(shutil.copytree(tiny_bundle, tmp_path / name)) for name in ("a", "b"))
    change_weight(second)
    for weights, taken in (("bound", 6), ("inside", 5)):
        options = EngineOptions("rtx", ("sm89",), weights)
        build_engines(first, options)
        quick_builder.clear()
        summary = build_engines(second, dataclasses.replace(options, reuse=first))
        assert len(summary.reused) == taken
        assert quick_builder == (["transformer"] if taken == 5 else [])
    Bundle.open(second).verify()


def change_weight(folder: Path) -> None:
    import hashlib

    path = folder / "weights" / "transformer.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    manifest = json.loads((folder / "manifest.json").read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest["files"]["weights/transformer.safetensors"]["sha256"] = digest
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage", ["changed", "truncated", "deleted"])
def test_a_damaged_engine_is_built_again(
    tiny_bundle: Path, tmp_path: Path, quick_builder: list[str], damage: str
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    summary = build_engines(folder, OPTIONS)
    file = next(file for file in summary.built if "vae_decoder" in file)
    path = folder / file
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + (b"!" if damage == "changed" else b""))
    with pytest.raises(KontextError, match=r"vae_decoder\S* .*build the engines again"):
        Bundle.open(folder).verify()
    quick_builder.clear()
    build_engines(folder, OPTIONS)
    assert quick_builder == ["vae_decoder"]
    Bundle.open(folder).verify()


def test_one_build_at_a_time(tiny_bundle: Path) -> None:
    with engines.locked(tiny_bundle):
        with pytest.raises(KontextError, match=r"another process is using .*: it adds engines or kernels"):
            build_engines(tiny_bundle, OPTIONS)


def test_a_compiler_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys; sys.stderr.write('first\\nout of everything\\n'); sys.exit(3)"
    start = subprocess.Popen

    def dying(_words: list[str], **options: Any) -> Any:
        return start([sys.executable, "-c", script], **options)

    monkeypatch.setattr(engine_process.subprocess, "Popen", dying)
    job = {"graph": "x.onnx", "target": "sm89", "output": str(tmp_path / "x")}
    with BuilderProcess("rtx") as builder:
        with pytest.raises(
            KontextError, match="x for sm89 cannot be built: the compiler ended with 3: out of every"
        ):
            builder.build(job, lambda *_: None)
