"""`--kernels`: compiled kernels in an export and in an existing bundle, and errors before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from kontext.errors import KontextError
from kontext.export.cli.main import main
from kontext.export.kernels import add_kernels, kernel_sizes
from kontext.files import write_atomic
from kontext.kernels import archive
from kontext.runtime.bundle import Bundle

COMPILED: list[tuple[int, int, int, str]] = []
"""Architecture, hidden size, heads and format of what the stub compiled."""


def stub(arch: int, sizes: archive.Sizes, **_options: Any) -> Iterator[tuple[str, bytes]]:
    """Two kernels whose code is the architecture's name, and a true index."""
    COMPILED.append((arch, sizes.hidden, sizes.heads, str(sizes.compute)))
    files = ["000-adaln_kernel.cubin", "001-gelu_kernel.cubin"]
    for name in files:
        yield name, f"machine code for {arch}".encode()
    index = {"made_from": archive.made_from(arch, sizes), "kernels": [{"file": name} for name in files]}
    yield archive.INDEX, json.dumps(index).encode()


@pytest.fixture(scope="module")
def exported(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with kernels for sm_89 and sm_120. Do not change it: copy it."""
    out = tmp_path_factory.mktemp("kernels") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "archive", stub)
        words = [str(tiny_checkpoint), "-o", str(out), "--bf16", "--quiet", "--kernels", "sm_89,sm_120"]
        assert main(words) == 0
    return out


@pytest.fixture
def bundle(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `exported`, and the stub in place of the compiler."""
    monkeypatch.setattr(archive, "archive", stub)
    COMPILED.clear()
    return Path(shutil.copytree(exported, tmp_path / "bundle"))


def entries(*architectures: str) -> list[dict[str, str]]:
    return [{"architecture": name, "index": f"kernels/{name}/kernels.json"} for name in architectures]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_kernels_are_files_of_an_export(exported: Path) -> None:
    assert json.loads((exported / "manifest.json").read_text())["kernels"] == entries("sm_120", "sm_89")
    bundle = Bundle.open(exported)
    bundle.verify()
    assert bundle.files["kernels/sm_89/000-adaln_kernel.cubin"].size == len(b"machine code for 89")


def test_kernels_are_added_to_a_bundle(
    bundle: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that the export made are kept; the result is the export's with all three."""
    assert main([str(bundle), "--kernels", "sm89,9.0"]) == 0
    printed = capsys.readouterr().out
    assert "kernels/sm_90: compiled (0.0 MB)" in printed
    assert "kernels/sm_89: is already there" in printed
    assert COMPILED == [(90, 64, 2, "torch.bfloat16")]
    added = Bundle.open(bundle)
    added.verify()
    assert added.manifest["kernels"] == entries("sm_120", "sm_89", "sm_90")
    kept = contents(exported)
    del kept["manifest.json"]
    assert kept.items() <= contents(bundle).items()
    assert main([str(bundle), "--kernels", "sm90", "--quiet"]) == 0
    assert len(COMPILED) == 1
    assert not capsys.readouterr().out


@pytest.mark.parametrize("damage", ["changed", "truncated", "deleted", "another version", "no version"])
def test_damaged_and_stale_kernels_are_compiled_again(bundle: Path, exported: Path, damage: str) -> None:
    path = bundle / "kernels" / "sm_89" / "000-adaln_kernel.cubin"
    if damage == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    elif damage == "truncated":
        path.write_bytes(b"")
    elif damage == "deleted":
        path.unlink()
    else:
        relabel(bundle, "other" if damage == "another version" else None)
    if damage in ("truncated", "deleted"):  # the rest of the bundle works
        assert list(Bundle.open(bundle).damaged) == ["kernels/sm_89/000-adaln_kernel.cubin"]
    if "version" not in damage:
        with pytest.raises(KontextError, match=r"adaln_kernel\.cubin .*compile the kernels again"):
            Bundle.open(bundle).verify()
    summary = add_kernels(bundle, (89, 120))
    assert (list(summary.compiled), summary.kept) == (["sm_89"], ["sm_120"])
    assert contents(bundle) == contents(exported)


def relabel(bundle: Path, made_from: str | None) -> None:
    """Lets sm_89's kernels be another version's: with the same names and one more file."""
    folder = bundle / "kernels" / "sm_89"
    index = json.loads((folder / "kernels.json").read_text())
    index.pop("made_from") if made_from is None else index.update(made_from=made_from)
    index["kernels"].append({"file": "002-old_kernel.cubin"})
    (folder / "002-old_kernel.cubin").write_bytes(b"old")
    (folder / "kernels.json").write_text(json.dumps(index))
    record_all(bundle)


def record_all(bundle: Path) -> None:
    import hashlib

    manifest = json.loads((bundle / "manifest.json").read_text())
    for path in (bundle / "kernels").rglob("*.*"):
        data = path.read_bytes()
        entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest["files"][path.relative_to(bundle).as_posix()] = entry
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("stop", range(5))
def test_a_build_that_is_killed_leaves_a_whole_bundle(
    bundle: Path, exported: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before any of its five writes: every file of the manifest is right, and the next build finishes it."""
    relabel(bundle, "other")
    left = [stop]

    def killed(path: Path, data: bytes) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write_atomic(path, data)

    for module in ("kernels", "bundle.additions"):
        monkeypatch.setattr(f"kontext.export.{module}.write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        add_kernels(bundle, (89,))
    Bundle.open(bundle).verify()
    left[0] = 100
    (bundle / "kernels" / "sm_89" / ".a.cubin.0123abcd.tmp").write_bytes(b"half")
    add_kernels(bundle, (89,))
    assert contents(bundle) == contents(exported)


def test_a_failed_compilation_changes_nothing(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relabel(bundle, "other")
    before = contents(bundle)

    def fails(*_arguments: Any, **_options: Any) -> Iterator[tuple[str, bytes]]:
        yield "000-adaln_kernel.cubin", b"new"
        raise KontextError("gelu cannot be compiled")

    monkeypatch.setattr(archive, "archive", fails)
    with pytest.raises(KontextError, match="gelu cannot be compiled"):
        add_kernels(bundle, (89,))
    assert contents(bundle) == before


def test_kernels_are_compiled_for_the_ranks_of_the_bundle() -> None:
    """The low-rank branch's dimensions are compiled in: a kernel for rank 32 does not run a layer of rank 64."""
    transformer = {"hidden_size": 128, "num_heads": 2, "mlp_ratio": 4.0}
    layers = {
        "a": {"format": "int4", "rank": 64},
        "b": {"format": "int4", "rank": 16, "activations": "fp8"},
        "c": {"format": "int4", "rank": 512},  # has no kernel
        "d": {"format": "int8", "rank": 8},  # added by PyTorch
        "e": "int4",
        "f": {"format": "nvfp4", "rank": 24},
    }
    precision = {"compute": "bf16", "layers": {"transformer": layers, "modulation": {"a": {"rank": 4}}}}
    sizes = kernel_sizes(transformer, precision)
    assert sizes.ranks == (16, 24, 64)
    names = {variant.name for variant in archive.variants(90, sizes)}
    assert {f"int4_gemm 16-bit, proj{rank}" for rank in ("", ", rank 16", ", rank 64")} <= names


def test_refusals_are_one_line(
    tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "bundle")
    for words, message in (
        ([str(tiny_checkpoint), "-o", out, "--kernels", "sm_75"], "there are kernels for sm_80"),
        (
            [str(tiny_checkpoint), "-o", out, "--fp32", "--kernels", "sm_89"],
            "not in fp32: export with --bf16",
        ),
        ([str(tiny_bundle), "--kernels", "sm_89"], "not in fp32: export with --bf16"),
        (
            [str(tiny_bundle), "--kernels", "sm_89", "--fp8"],
            "MODEL is an existing bundle; --fp8 only applies",
        ),
        ([str(tiny_checkpoint), "--kernels", "sm_89"], "is not a bundle: add -o OUT to export a checkpoint"),
        (["--kernels", "sm_89"], "--kernels needs a bundle: name one as MODEL, or export one with -o OUT"),
    ):
        assert main(words) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert printed.count("\n") == 1
    assert not Path(out).exists()
