"""`kontext-edit`: pictures written, one line for each thing that can go wrong, and a process without PyTorch."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kontext import files
from kontext.errors import KontextError
from kontext.runtime import Pipeline, cli
from kontext.runtime.bundle import Bundle
from kontext.runtime.images import open_picture

HEAVY = ("torch", "transformers", "diffusers", "triton", "onnx", "scipy")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    Image.effect_mandelbrot((176, 96), (-2, -1.5, 1, 1.5), 50).save(path)
    return path


def command(bundle: Path, output: Path, *more: str) -> list[str]:
    return [str(bundle), "--prompt", "make it blue", "--steps", "1", "-o", str(output), *more]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_an_edit_is_that_of_the_pipeline(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.png"
    more = ["-i", str(picture), "--guidance", "3.5", "--seed", "4", "--device", "cpu", "--verify"]
    assert cli.main(command(tiny_bundle, output, *more)) == 0
    pipe = Pipeline.load(tiny_bundle, device="cpu")
    expected = pipe.edit(Image.open(picture), "make it blue", steps=1, guidance=3.5, seed=4)
    with Image.open(output) as image:
        assert image.size == (176, 96)
        assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_the_required_bundle_and_others(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    digest, output = Bundle.open(folder).digest, tmp_path / "out.png"
    pinned = [*command(folder, output, "--device", "cpu"), "--require-digest", digest]
    assert cli.main(pinned) == 0
    weights = folder / "weights" / "vae_decoder.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    capsys.readouterr()
    assert "vae_decoder.safetensors is damaged" in refused(capsys, pinned)
    manifest = folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    assert f"is not the required bundle: its digest is {Bundle.open(folder).digest}" in refused(
        capsys, pinned
    )
    with pytest.raises(KontextError, match="is not the required bundle"):
        Pipeline.load(Bundle.open(folder), device="cpu", require_digest=digest)
    with pytest.raises(KontextError, match=r"vae_decoder\.safetensors is damaged"):
        Pipeline.load(folder, device="cpu", require_digest=Bundle.open(folder).digest)


@pytest.mark.parametrize("name", ["transformer.onnx", "tokenizers/t5.json"])
def test_what_is_executed_is_always_compared(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    message = refused(capsys, command(folder, tmp_path / "out.png", "--device", "cpu"))
    assert f"{name} is damaged: its SHA-256 is not the manifest's" in message


def test_repainting_with_a_negative_prompt_is_that_of_the_pipeline(
    tiny_bundle: Path, picture: Path, tmp_path: Path
) -> None:
    output, mask = tmp_path / "out.png", tmp_path / "mask.png"
    white = Image.new("L", (88, 48))
    white.paste(255, (0, 0, 40, 48))
    white.save(mask)
    more = [
        "-i",
        str(picture),
        "--init-image",
        str(picture),
        "--mask",
        str(mask),
        "--mask-blur",
        "3",
        "--paste-back",
    ]
    more += ["--strength", "0.5", "--negative-prompt", "a star", "--true-cfg", "3", "--cfg-until", "0.5"]
    arguments = command(tiny_bundle, output, *more, "--device", "cpu")
    arguments[arguments.index("--steps") + 1] = "4"
    assert cli.main(arguments) == 0
    image = Image.open(picture)
    expected = Pipeline.load(tiny_bundle, device="cpu").edit(
        image,
        "make it blue",
        steps=4,
        mask=white,
        mask_blur=3,
        init_image=image,
        strength=0.5,
        paste_back=True,
        negative_prompt="a star",
        true_cfg=3,
        cfg_until=0.5,
    )
    with Image.open(output) as found:
        assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_several_references_sizes_and_images(
    tiny_bundle: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jpg"
    more = ["-i", str(picture), "--image", str(picture), "--size", "96x64", "--num-images", "2"]
    assert cli.main(command(tiny_bundle, output, *more)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.png", "out-0.jpg", "out-1.jpg"]
    lines = capsys.readouterr().out.splitlines()
    assert lines.pop(0).startswith("running with ")
    assert [line.startswith("wrote ") and line.endswith("(96x64)") for line in lines] == [True, True]


def test_text_to_image_and_a_long_prompt(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(tiny_bundle, tmp_path / "out.png", "--quiet")
    arguments[2] = "make it blue " * 40
    assert cli.main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 2  # one for each encoder
    assert all(line.startswith("warning: the prompt is longer than") for line in lines)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "0"], "--steps must be 1 or more"),
        (["--steps", "-4"], "--steps must be 1 or more"),
        (
            ["-i", "https://example.org/in.png"],
            "files of this machine, not https://example.org/in.png: download it",
        ),
        (
            ["-i", "data:image/png;base64,AA=="],
            "argument -i/--image: takes files of this machine, not data:image/png",
        ),
        (["--steps", "four"], "invalid int value: 'four'"),
        (["--num-images", "0"], "--num-images must be 1 or more"),
        (["--num-images", "100000000"], "--num-images may be at most 1000, not 100000000"),
        (["--guidance", "nan"], "guidance must be a number from -1000 to 1000"),
        (["--seed", "-1"], "a seed is a whole number"),
        (["--size", "100x128"], "must be multiples of 16; the nearest is 96x128"),
        (["--size", "0x0"], "size 0x0: width and height must be above 0"),
        (["--size", "1024"], "--size takes WIDTHxHEIGHT"),
        (["--size", "16x-16"], "size 16x-16: width and height must be above 0"),
        (["--reference-size", "large"], "must be auto, preferred, output or WIDTHxHEIGHT, not 'large'"),
        (["--reference-size", "100x128"], "reference size 100x128: both sides must be multiples of 16"),
        (["--size", "160000x160000"], "times as large"),
        (["--mask", "no.png"], "no.png does not exist"),
        (["--mask", "/dev/null"], "/dev/null"),
        (["--mask", __file__], "is not a PNG, JPEG"),
        (["--mask", "https://example.org/mask.png"], "argument --mask: takes files of this machine"),
        (["--mask-blur", "2"], "mask_blur needs a mask"),
        (["--paste-back"], "paste_back needs a mask"),
        (["--strength", "0"], "strength must be above 0 and at most 1, not 0"),
        (["--strength", "0.5"], "a strength below 1 needs a picture to repaint"),
        (["--true-cfg", "-4"], "true_cfg must be a number from 1 to 1000, not -4"),
        (["--cfg-until", "2"], "cfg_until must be above 0 and at most 1, not 2"),
        (["--device", "abacus"], "invalid choice: 'abacus'"),
        (["--weight-budget", "8GB"], "--weight-budget needs --device rtx or --device tensorrt"),
        (["--weight-budget", "8GB", "--backend", "torch"], "--weight-budget needs --device rtx"),
        (["--offload"], "--offload needs --backend torch"),
        (["--compute", "bf16"], "--compute needs --backend torch or --backend openvino"),
        (["--compute", "bf17", "--device", "openvino"], "compute 'bf17' is not known: choose from fp32"),
        (["--cache", "0.1", "--device", "rtx"], "--cache needs --backend torch"),
        (["--backend", "torch", "--device", "rtx"], "torch backend runs on cpu or cuda, not on 'rtx'"),
        (
            ["--backend", "torch", "--cache", "0"],
            "cache must be a relative change above 0, such as 0.1, not 0",
        ),
        (["--weight-budget", "8 parsecs"], "'8 parsecs' is not a size of memory: write 12GB"),
        (["--weight-budget", "0"], "--weight-budget 0: a memory budget must be more than 0, not 0"),
        (["--weight-budget", "8"], "--weight-budget 8: say 8GB or 8GiB"),
        (["--device", "tensorrt"], "TensorRT"),
        (["--sharpness", "3"], "unrecognized arguments"),
        (["-i", "nowhere.png"], "nowhere.png does not exist"),
        (["-i", __file__], "is not a PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF or HEIC picture"),
        (["-o", "/nowhere/out.png"], "/nowhere does not exist: make the folder first"),
        (["-o", "out.xyz"], "cannot write pictures of type '.xyz'"),
        (["-o", "."], "cannot write pictures of type"),
    ],
)
def test_what_can_go_wrong_is_one_line(
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, command(tiny_bundle, tmp_path / "out.png", *more))
    assert list(tmp_path.iterdir()) == []


def test_a_server_in_the_place_of_a_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["http://host:8000", "-p", "make it blue", "-o", "out.png"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error: argument BUNDLE: takes files of this machine, not http://host:8000: name a server by --server URL ("
    )


def test_a_folder_that_is_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a bundle" in refused(capsys, command(tmp_path, tmp_path / "out.png"))
    assert "required: -p/--prompt" in refused(capsys, [])
    assert "unrecognized arguments: --promt" in refused(capsys, ["--promt", "x", "-o", "y.png"])


def test_a_full_disk(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    message = refused(capsys, command(tiny_bundle, tmp_path / "out.png"))
    assert "out.png cannot be written: No space left on device" in message
    assert list(tmp_path.iterdir()) == []


def test_no_memory(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Pipeline, "edit", none_left)
    assert "not enough memory" in refused(capsys, command(tiny_bundle, tmp_path / "out.png"))


@pytest.mark.skipif(sys.platform != "linux", reason="watches the process in /proc")
@pytest.mark.parametrize("delay", [0, 1.0])
def test_control_c_leaves_nothing(tiny_bundle: Path, tmp_path: Path, delay: float) -> None:
    """Once while libraries load, once while the model is about to run or runs."""
    output = tmp_path / "out.png"
    output.write_bytes(b"an older picture")
    arguments = command(tiny_bundle, output, "--size", "512x512", "--steps", "100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "kontext.runtime.cli", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background ignores Ctrl-C and hands that on; the program under test must not inherit it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while "onnxruntime" not in Path(f"/proc/{process.pid}/maps").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors == "\ninterrupted\n"
    assert process.returncode == 130
    assert output.read_bytes() == b"an older picture"
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_an_edit_loads_none_of_the_heavy_libraries(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    arguments = command(tiny_bundle, tmp_path / "out.png", "-i", str(picture), "--quiet")
    script = (
        "import sys; from kontext.runtime.cli import main; code = main(sys.argv[1:]); "
        "print(code, *sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    code, *modules = done.stdout.split()
    assert code == "0"
    assert {"onnxruntime", "tokenizers", "PIL.Image"} <= set(modules)
    assert not {name.split(".")[0] for name in modules} & set(HEAVY)
    ours = {name.split(".")[1] for name in modules if name.startswith("kontext.")}
    assert ours == {
        "bundle_folder",
        "command",
        "compute_capability",
        "errors",
        "files",
        "installation",
        "interrupts",
        "lora_flag",
        "regular_files",
        "runtime",
        "safetensors_header",
    }


def test_importing_the_runtime_loads_not_even_numpy() -> None:
    script = "import sys, kontext.runtime.cli, kontext.runtime.bundle; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_help_and_the_installed_command() -> None:
    script = Path(sys.executable).with_name("kontext-edit")
    words = [str(script)] if script.exists() else [sys.executable, "-m", "kontext.runtime.cli"]
    done = subprocess.run([*words, "--help"], capture_output=True, text=True, check=True, env={**os.environ})
    assert "--num-images" in done.stdout


class Streams:
    """Standard streams with bytes behind them, as a process has; stdout is no terminal."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stdin: bytes = b"") -> None:
        self.out = io.TextIOWrapper(io.BytesIO(), write_through=True)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr(sys, "stdout", self.out)

    @property
    def written(self) -> bytes:
        return self.out.buffer.getvalue()  # type: ignore[attr-defined]


def test_pictures_through_pipes(
    tiny_bundle: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the picture is on stdout."""
    output = tmp_path / "out.png"
    flags = [str(tiny_bundle), "--steps", "1", "-p", "make it blue", "--device", "auto"]
    streams = Streams(monkeypatch, picture.read_bytes())
    assert cli.main([*flags, "-i", "-", "-i", str(picture), "-o", "-"]) == 0
    assert cli.main([*flags, "-i", str(picture), "-i", str(picture), "-o", str(output), "--quiet"]) == 0
    assert streams.written == output.read_bytes()


def test_a_prompt_from_a_file_or_stdin(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, output = tmp_path / "prompt.txt", tmp_path / "out.png"
    text.write_bytes("\ufeffmake it\nblüe \r\n\n".encode())
    for source in (str(text), "-"):
        Streams(monkeypatch, text.read_bytes())
        assert cli.main([str(tiny_bundle), "--steps", "1", "--prompt-file", source, "-o", str(output)]) == 0
        assert json.loads(open_picture(output).info["kontext"])["prompt"] == "make it\nblüe "


def test_one_json_object(
    tiny_bundle: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.png"
    words = command(
        tiny_bundle, output, "-i", str(picture), "--seed", "random", "--num-images", "2", "--json"
    )
    assert cli.main([*words, "--size", "64x64", "-v"]) == 0
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    assert said.keys() == {"pictures", "seconds", "warnings"}
    first, second = said["pictures"]
    assert first["path"] == str(tmp_path / "out-0.png")
    assert first["seed"] + 1 == second["seed"] == second["metadata"]["seed"]
    assert (first["size"], first["metadata"]) == (
        [64, 64],
        json.loads(open_picture(first["path"]).info["kontext"]),
    )
    assert list(said["seconds"]) == [
        *("read", "load", "text_encoder", "text_encoder_2", "vae_encoder", "modulation", "transformer"),
        *("vae_decoder", "write", "total"),
    ]
    assert all(seconds >= 0 for seconds in said["seconds"].values())
    (warned,) = said["warnings"]
    assert warned.startswith("the output of 64x64 has another aspect than the picture of 176x96")
    assert f"warning: {warned}\n" in captured.err
    assert f"seed {first['seed']}\n" in captured.err
    assert "all networks: onnxruntime on cpu\n" in captured.err
    assert "; total " in captured.err


def test_random_seeds_differ() -> None:
    seeds = {cli.parse_seed("random") for _ in range(8)}
    assert len(seeds) == 8
    assert all(0 <= seed < 1 << 32 for seed in seeds)


def test_without_metadata(tiny_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.png"
    assert cli.main(command(tiny_bundle, output, "--no-metadata")) == 0
    assert b"make it blue" not in output.read_bytes()
    assert b"kontext" not in output.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "-", "--num-images", "2"], "-o - writes one picture: name a file for several"),
        (["-o", "-", "--json"], "-o - and --json both write to stdout: only one of them can"),
        (["-i", "-", "-i", "-", "-o", "x.png"], "-i - reads one picture from stdin: name the others"),
        (["-i", "-", "-o", "x.png"], "stdin is not a PNG"),
        (["--prompt-file", "-", "-o", "x.png"], "name either --prompt or --prompt-file"),
    ],
)
def test_what_pipes_cannot_do(
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no picture")))
    assert message in refused(capsys, [str(tiny_bundle), "-p", "x", *words])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff", "is not UTF-8"),
        (b"x" * ((1 << 20) + 1), "larger than 1 MiB"),
        (None, "cannot be read: No such file"),
    ],
)
def test_prompts_that_are_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes | None, message: str
) -> None:
    path = tmp_path / "prompt.txt"
    if data is not None:
        path.write_bytes(data)
    assert message in refused(capsys, ["bundle", "--prompt-file", str(path), "-o", "x.png"])
