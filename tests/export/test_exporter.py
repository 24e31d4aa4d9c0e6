"""Whole exports: the same bytes whatever interrupts them, and only bundles are ever replaced."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from safetensors.torch import load_file, save_file  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.export import exporter  # noqa: E402
from kontext.export.bundle import disk_space  # noqa: E402
from kontext.export.bundle.folder_kind import JOURNAL  # noqa: E402
from kontext.export.bundle.journal import Journal  # noqa: E402
from kontext.export.cli import main  # noqa: E402
from kontext.export.weights import write  # noqa: E402
from kontext.export.weights.plan import PlannedWeight, WeightPlan  # noqa: E402
from kontext.model.safetensors_file import TensorInfo  # noqa: E402
from kontext.safetensors_header import read_header  # noqa: E402

pytestmark = pytest.mark.usefixtures("fast_trace")


def export(*arguments: object) -> int:
    return main.main([*map(str, arguments), "--fp32", "--quiet"])


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    return captured.err


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the checkpoint's tensors in the order they are read."""
    names: list[str] = []
    original = TensorInfo.read

    def read(self: TensorInfo) -> torch.Tensor:
        names.append(self.name)
        return original(self)

    monkeypatch.setattr(TensorInfo, "read", read)
    return names


def but_for_previews(reads: Sequence[str]) -> list[str]:
    """Without the weights of the autoencoder's encoder, which runs when the manifest is made."""
    return [name for name in reads if not re.match(r"encoder\.(?!block\.)", name)]


def stop_at(monkeypatch: pytest.MonkeyPatch, network: str, weight: str, fault: BaseException) -> None:
    """Lets the export fail when it comes to one weight."""
    original = write.convert

    def convert(plan: WeightPlan, item: PlannedWeight, source: object) -> list[torch.Tensor]:
        if (plan.network, item.weight) == (network, weight):
            raise fault
        return original(plan, item, source)  # type: ignore[arg-type]

    monkeypatch.setattr(write, "convert", convert)


def test_another_process_makes_the_same_bytes(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    """The whole command, tracing and all, with another hash seed and from another folder."""
    command = [sys.executable, "-m", "kontext.export.cli.main", str(tiny_checkpoint), "-o", "again", "--fp32"]
    environment = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "again") == contents(tiny_bundle)
    assert done.stderr == ""
    for part in ("0.5 M parameters", "transformer.safetensors", "peak memory", "kontext-edit", "again"):
        assert part in done.stdout


def test_manifest_and_files(tiny_bundle: Path) -> None:
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    files = contents(tiny_bundle)
    files.pop("manifest.json")
    assert {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    } == (manifest["files"])
    assert manifest["format"] == "kontext-bundle"
    assert manifest["model"]["parameters"] == 497_259
    assert manifest["sampler"]["size_multiple"] == 16
    assert [128, 128] in manifest["sampler"]["preferred_sizes"]
    assert manifest["sampler"]["reference_method"] == "index"  # offset for FLUX.1 Kontext's shape alone


def test_fp8_manifest_names_every_layer(fp8_bundle: Path) -> None:
    manifest = json.loads((fp8_bundle / "manifest.json").read_text())
    precision = manifest["precision"]
    assert (precision["weights"], precision["compute"]) == ("fp8", "fp32")
    for network, entry in manifest["graphs"].items():
        header = read_header(fp8_bundle / entry["weights"])
        stored = {name for name, info in header.tensors.items() if info.dtype == "F8_E4M3"}
        assert stored == set(precision["layers"].get(network, {}))
        assert all(f"{name}_scale" in header.tensors for name in stored)
    assert set(precision["layers"]) == {"modulation", "text_encoder", "text_encoder_2", "transformer"}


def test_weights_are_the_checkpoints(tiny_checkpoint: Path, tiny_bundle: Path) -> None:
    source = load_file(tiny_checkpoint / "transformer" / "diffusion_pytorch_model.safetensors")
    stored = load_file(tiny_bundle / "weights" / "transformer.safetensors")
    assert torch.equal(stored["img_in.weight"], source["x_embedder.weight"].t())
    fused = torch.cat([source[f"transformer_blocks.0.attn.to_{part}.weight"] for part in "qkv"])
    assert torch.equal(stored["double_blocks.0.img_attn.qkv.weight"], fused.t())


def test_force_rules(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    shutil.copytree(tiny_bundle, out)
    (out / "transformer.onnx").write_bytes(b"old")
    assert export(tiny_checkpoint, "-o", out) == 2
    assert "give --force" in error(capsys)
    (out / "holiday.png").write_bytes(b"mine")
    assert export(tiny_checkpoint, "-o", out, "--force") == 2
    assert "holiday.png is not part of the bundle" in error(capsys)
    assert (out / "transformer.onnx").read_bytes() == b"old"
    (out / "holiday.png").unlink()
    assert export(tiny_checkpoint, "-o", out, "--force") == 0
    assert contents(out) == contents(tiny_bundle)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def in_the_way(kind: str, out: Path) -> None:
    if kind == "file":
        out.write_text("mine")
        return
    out.mkdir()
    if kind == "folder":
        (out / "thesis.tex").write_text("mine")
    if kind == "another manifest":
        (out / "manifest.json").write_text('{"format": "webextension", "files": {}}')
    if kind == "no manifest":
        (out / "manifest.json").write_text("[]")


@pytest.mark.parametrize("kind", ["file", "folder", "another manifest", "no manifest"])
def test_what_is_not_a_bundle_is_never_touched(
    tiny_checkpoint: Path, tmp_path: Path, capsys, kind: str
) -> None:
    out = tmp_path / "out"
    in_the_way(kind, out)
    before = out.read_bytes() if out.is_file() else contents(out)
    assert export(tiny_checkpoint, "-o", out, "--force") == 2
    assert "exists and is not a" in error(capsys)
    assert (out.read_bytes() if out.is_file() else contents(out)) == before
    assert not (tmp_path / "out.partial").exists()


def test_an_empty_folder_takes_force(tiny_checkpoint: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "out").mkdir()
    assert export(tiny_checkpoint, "-o", tmp_path / "out") == 2
    assert "give --force" in error(capsys)
    assert export(tiny_checkpoint, "-o", tmp_path / "out", "--force") == 0


def test_nothing_is_lost_when_the_output_is_taken_meanwhile(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, capsys, monkeypatch, reads: list[str]
) -> None:
    def taken(*arguments: object) -> None:
        write_tokenizers(*arguments)
        shutil.copytree(tiny_bundle, tmp_path / "out")

    with monkeypatch.context() as patch:
        write_tokenizers = exporter.write_tokenizers
        patch.setattr(exporter, "write_tokenizers", taken)
        assert export(tiny_checkpoint, "-o", tmp_path / "out") == 2
    assert "give --force" in error(capsys)
    reads.clear()
    assert export(tiny_checkpoint, "-o", tmp_path / "out", "--force") == 0
    assert but_for_previews(reads) == []
    assert contents(tmp_path / "out") == contents(tiny_bundle)


def test_too_small_a_disk_discards_nothing(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, capsys, monkeypatch, reads: list[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, "transformer", "txt_in.weight", OSError(errno.ENOSPC, "No space left on device"))
        assert export(tiny_checkpoint, "-o", tmp_path / "out") == 2
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        patch.setattr(disk_space, "SPARE_BYTES", 1 << 40)
        assert export(tiny_checkpoint, "-o", tmp_path / "out") == 2
    assert "not enough disk space" in capsys.readouterr().err
    reads.clear()
    assert export(tiny_checkpoint, "-o", tmp_path / "out") == 0
    assert reads[0] == "context_embedder.weight"
    assert contents(tmp_path / "out") == contents(tiny_bundle)


def test_a_link_is_followed(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "disk" / "real")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "real")
    assert export(tiny_checkpoint, "-o", tmp_path / "link", "--force") == 0
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "link") == contents(tiny_bundle)


def test_no_parent_folder(tiny_checkpoint: Path, tmp_path: Path, capsys) -> None:
    assert export(tiny_checkpoint, "-o", tmp_path / "no" / "out") == 2
    assert "is not a folder" in error(capsys)


def test_a_partial_folder_of_somebody_else(tiny_checkpoint: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "film.part").write_text("mine")
    assert export(tiny_checkpoint, "-o", tmp_path / "out") == 2
    assert "is not an unfinished export" in error(capsys)
    assert contents(tmp_path / "out.partial") == {"film.part": b"mine"}


def test_two_exports_at_once(tiny_checkpoint: Path, tmp_path: Path, capsys) -> None:
    with (tmp_path / "out.partial.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert export(tiny_checkpoint, "-o", tmp_path / "out") == 2
    assert "another export is writing" in error(capsys)


def test_ctrl_c_keeps_what_is_finished(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, capsys, monkeypatch, reads: list[str]
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, "transformer", "single_blocks.0.linear2.weight", KeyboardInterrupt())
        assert export(tiny_checkpoint, "-o", tmp_path / "out") == 130
    message = capsys.readouterr().err
    assert "interrupted" in message
    assert "the same command resumes from" in message
    assert not (tmp_path / "out").exists()
    reads.clear()
    assert export(tiny_checkpoint, "-o", tmp_path / "out") == 0
    assert reads[0] == "single_transformer_blocks.0.proj_out.weight"  # and not a weight that was done
    assert contents(tmp_path / "out") == contents(tiny_bundle)
    assert not (tmp_path / "out.partial").exists()


def test_ctrl_c_while_tracing(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch, reads
) -> None:
    with monkeypatch.context() as patch:
        original = exporter.Tracers.result

        def result(self: object, name: str) -> object:
            if name == "vae_decoder":
                raise KeyboardInterrupt
            return original(self, name)

        patch.setattr(exporter.Tracers, "result", result)
        assert export(tiny_checkpoint, "-o", tmp_path / "out") == 130
    reads.clear()
    assert export(tiny_checkpoint, "-o", tmp_path / "out") == 0
    assert but_for_previews(reads) == []
    assert contents(tmp_path / "out") == contents(tiny_bundle)


def test_killed_at_any_moment(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch) -> None:
    """The state on disk at a sync, with garbage behind it as a power cut may leave, is gone on with."""
    monkeypatch.setattr(write, "SYNC_BYTES", 100_000)
    states: list[Path] = []
    original = Journal.mark

    def mark(self: Journal, file: str, position: int) -> None:
        original(self, file, position)
        state = tmp_path / f"state{len(states)}.partial"
        shutil.copytree(self.folder, state)
        with (state / file).open("ab") as unfinished:
            unfinished.write(b"\0" * 1000)
        states.append(state)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "mark", mark)
        assert export(tiny_checkpoint, "-o", tmp_path / "out") == 0
    assert len(states) > 8
    for state in states[::3]:
        out = state.with_suffix("")
        assert export(tiny_checkpoint, "-o", out) == 0
        assert contents(out) == contents(tiny_bundle)


def test_a_torn_journal_begins_anew(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, "transformer", "img_in.weight", KeyboardInterrupt())
        assert export(tiny_checkpoint, "-o", tmp_path / "out") == 130
    journal = tmp_path / "out.partial" / JOURNAL
    journal.write_bytes(journal.read_bytes()[:-5])
    (tmp_path / "out.partial" / "weights" / "modulation.safetensors").write_bytes(b"torn")
    assert export(tiny_checkpoint, "-o", tmp_path / "out") == 0
    assert contents(tmp_path / "out") == contents(tiny_bundle)


def test_another_checkpoint_begins_anew(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch
) -> None:
    model = Path(
        shutil.copytree(tiny_checkpoint, tmp_path / tiny_checkpoint.name)
    )  # the manifest has its name
    path = model / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, path)
    with monkeypatch.context() as patch:
        stop_at(patch, "transformer", "img_in.weight", KeyboardInterrupt())
        assert export(model, "-o", tmp_path / "out") == 130
    save_file(tensors, path)
    assert export(model, "-o", tmp_path / "out") == 0
    assert contents(tmp_path / "out") == contents(tiny_bundle)


def test_a_full_disk(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        stop_at(patch, "transformer", "txt_in.weight", OSError(errno.ENOSPC, "No space left on device"))
        assert export(tiny_checkpoint, "-o", tmp_path / "out") == 2
    assert "the disk is full" in error(capsys)
    assert not (tmp_path / "out").exists()
    assert export(tiny_checkpoint, "-o", tmp_path / "out") == 0
    assert contents(tmp_path / "out") == contents(tiny_bundle)


def test_a_disk_too_small_is_known_before(tiny_checkpoint: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert export(tiny_checkpoint, "-o", tmp_path / "out") == 2
    assert "not enough disk space" in error(capsys)
    assert list(tmp_path.iterdir()) == []


def test_another_write_error(tiny_checkpoint: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    stop_at(monkeypatch, "transformer", "txt_in.weight", OSError(errno.EIO, "Input/output error"))
    assert export(tiny_checkpoint, "-o", tmp_path / "out") == 2
    assert "Input/output error" in error(capsys)


def nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["encoder.conv_in.bias"][0] = float("nan")


def huge(tensors: dict[str, torch.Tensor]) -> None:
    tensors["encoder.conv_in.bias"][0] = 1e6


@pytest.mark.parametrize(
    ("damage", "flag", "message"),
    [(nan, "--fp32", "NaN or infinity"), (huge, "--fp16", "does not fit into fp16")],
)
def test_damaged_weights_leave_nothing(
    tiny_checkpoint: Path, tmp_path: Path, capsys, damage: Callable[[dict], None], flag: str, message: str
) -> None:
    model = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    path = model / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)
    assert main.main([str(model), "-o", str(tmp_path / "out"), flag, "--quiet"]) == 2
    assert message in error(capsys)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model"]


def test_the_reference_method_that_is_asked_for(
    tiny_bundle: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    untraced: Callable[[Path], AbstractContextManager[None]],
) -> None:
    folder = tmp_path / "bundle"
    with untraced(tiny_bundle):
        flags = ["--fp32", "--reference-method", "stitch", "--quiet"]
        assert main.main([str(tiny_checkpoint), "-o", str(folder), *flags]) == 0
    assert json.loads((folder / "manifest.json").read_text())["sampler"]["reference_method"] == "stitch"


@pytest.mark.parametrize("large", [False, True])
def test_graphs_are_traced_beside_the_calibration(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    """Except for a large model, whose calibration needs the memory; a calibration that fails ends the tracing."""
    events: list[str] = []

    class Noted(exporter.Tracers):
        def __enter__(self) -> exporter.Tracers:
            events.append("tracing")
            return self

        def __exit__(self, *error: object) -> None:
            events.append("ended")

    def stopped(*_: object) -> None:
        events.append("calibration")
        raise KontextError("calibration stopped")

    monkeypatch.setattr(exporter, "Tracers", Noted)
    monkeypatch.setattr(exporter, "calibrate", stopped)
    if large:
        monkeypatch.setattr(exporter, "BIG_MODEL", 1)
    assert main.main(["-o", str(tmp_path / "out"), "--fp8", "--quiet"]) == 2
    assert "calibration stopped" in error(capsys)
    assert events == (["calibration"] if large else ["tracing", "calibration", "ended"])
    assert list(tmp_path.iterdir()) == []
