"""`kontext-export digest`, the flags that take what it prints, and what prints it too."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from kontext.export.cli import main
from kontext.export.cli.summary import digest_line


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def digest_of(folder: Path) -> str:
    return "sha256:" + hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()


def flip(path: Path) -> None:
    """Changes the last bit of a file, in place and with its size kept."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert main.main(list(map(str, words))) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_the_digest_alone_is_printed(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--quick"]):
        assert main.main(["digest", str(tiny_bundle), *more]) == 0
        captured = capsys.readouterr()
        assert captured.out == digest_of(tiny_bundle) + "\n"
        assert captured.err == ""


def test_every_file_is_checked_unless_it_has_to_be_quick(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(copy / "weights/vae_encoder.safetensors")
    assert "vae_encoder.safetensors is damaged" in refused(capsys, "digest", copy)
    assert main.main(["digest", str(copy), "--quick"]) == 0
    assert capsys.readouterr().out == digest_of(copy) + "\n"


def test_files_that_are_not_in_the_manifest_are_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(5):
        (copy / f"kernels/sm_89/{number}.cubin").parent.mkdir(parents=True, exist_ok=True)
        (copy / f"kernels/sm_89/{number}.cubin").write_bytes(b"code")
    assert main.main(["digest", str(copy)]) == 0
    captured = capsys.readouterr()
    assert captured.out == digest_of(copy) + "\n"
    line = "kernels/sm_89/0.cubin, kernels/sm_89/1.cubin, kernels/sm_89/2.cubin and 2 more\n"
    assert captured.err == f"warning: never loaded, since not in {copy}'s manifest: {line}"
    assert main.main(["inspect", str(copy)]) == 0
    assert f"  never loaded, since not in its manifest: {line}" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_its_line_can_be_signed(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of SECURITY.md, with a key that is made here."""

    def ssh_keygen(*words: object, given: str = "") -> int:
        return subprocess.run(
            ["ssh-keygen", *map(str, words)], input=given, text=True, capture_output=True, cwd=tmp_path
        ).returncode

    assert main.main(["digest", str(tiny_bundle)]) == 0
    line = capsys.readouterr().out
    (tmp_path / "my-bundle.digest").write_text(line)
    assert ssh_keygen("-q", "-t", "ed25519", "-N", "", "-f", "key") == 0
    assert ssh_keygen("-Y", "sign", "-f", "key", "-n", "kontext-bundle", "my-bundle.digest") == 0
    (tmp_path / "allowed").write_text(f"me@example.org {(tmp_path / 'key.pub').read_text()}")
    verify = ["-Y", "verify", "-f", "allowed", "-I", "me@example.org", "-n", "kontext-bundle"]
    assert ssh_keygen(*verify, "-s", "my-bundle.digest.sig", given=line) == 0
    assert ssh_keygen(*verify, "-s", "my-bundle.digest.sig", given=line.replace("sha256:", "sha256:0")) != 0


def test_what_is_written_is_pinned(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest, output = digest_of(copy), tmp_path / "repository"
    words = [copy, "--triton", output]
    message = refused(capsys, *words, "--require-digest", "sha256:" + "0" * 64)
    assert f"is not the required bundle: its digest is {digest}" in message
    assert main.main([*map(str, words), "--require-digest", digest, "--quiet"]) == 0
    config = (output / "models/kontext_stream/config.pbtxt").read_text()
    assert f'key: "require_digest" value {{ string_value: "{digest}" }}' in config
    shutil.rmtree(output)
    flip(copy / "weights/vae_encoder.safetensors")
    assert "vae_encoder.safetensors is damaged" in refused(capsys, *words, "--require-digest", digest)
    assert not output.exists()


def test_only_an_existing_bundle_can_be_required(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "-o", tmp_path / "out", "--require-digest", "sha256:" + "0" * 64)
    assert "--require-digest needs an existing bundle as MODEL" in message


def test_an_export_prints_it(tiny_bundle: Path) -> None:
    assert digest_line(digest_of(tiny_bundle)) == f"digest {digest_of(tiny_bundle)}"
    listed = json.loads((tiny_bundle / "manifest.json").read_text())["files"]
    there = {path.relative_to(tiny_bundle).as_posix() for path in tiny_bundle.rglob("*") if path.is_file()}
    assert there - {"manifest.json"} == set(listed)
