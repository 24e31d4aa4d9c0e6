"""The user's defaults: read as the flags that they stand for, flags win, and every mistake in the file is one line."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kontext.errors import KontextError
from kontext.runtime import cli
from kontext.runtime.arguments import read_arguments


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "kontext").mkdir(parents=True)
    return tmp_path / "config" / "kontext" / "config.toml"


def read(*words: str) -> dict[str, object]:
    return vars(read_arguments(cli.parser(), ["-p", "x", "-o", "x.png", *words], cli.RUN_BY))


def test_defaults_and_flags(config: Path) -> None:
    config.write_text(
        '[edit]\nbundle = "~/models/kontext"\ndevice = "cpu"\nsteps = 4\nguidance = 3\nsize = "64x96"\nverify = true\n'
        "no-metadata = true\nquiet = false\nnegative-prompt = '-p'\n"
    )
    found = read("--steps", "9")
    assert found["bundle"] == Path.home() / "models" / "kontext"
    assert [found[name] for name in ("device", "steps", "guidance", "size")] == ["cpu", 9, 3.0, (64, 96)]
    assert [found[name] for name in ("verify", "metadata", "quiet", "negative_prompt")] == [
        True,
        False,
        False,
        "-p",
    ]
    assert found["origins"] == dict.fromkeys(
        ("bundle", "device", "guidance", "size", "verify", "metadata", "negative_prompt"), str(config)
    )
    assert read("here", "--backend", "torch")["device"] is None  # what runs it comes from one place
    assert read("here", "--no-config")["steps"] is None
    served = read("--server", "http://host:8000")
    assert [served[name] for name in ("bundle", "device", "verify", "steps")] == [None, None, False, 4]


def test_a_path_is_relative_to_the_file(config: Path) -> None:
    config.write_text('[edit]\nbundle = "kontext"\n')
    assert read()["bundle"] == config.parent / "kontext"
    config.write_text('[edit]\nserver = "http://host:8000"\n')
    assert read()["server"] == "http://host:8000"
    assert read("here")["server"] is None


def test_without_a_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read("here")["origins"] == {}
    monkeypatch.setenv("XDG_CONFIG_HOME", str(config))  # no folder
    config.write_text("")
    assert read("here")["origins"] == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[edit]\nstep = 4", "[edit] has 'step', which is no default of kontext-edit: did you mean steps?"),
        (b"[edit]\nreference_size = 'auto'", "did you mean reference-size?"),
        (b"[edit]\nprompt = 'x'", "[edit] has 'prompt', which is no default of kontext-edit"),
        (b"[edit]\nsteps = 'four'", "[edit] steps: argument --steps: invalid int value: 'four'"),
        (b"[edit]\nsteps = true", "[edit] steps: must be a text or a number, not True"),
        (b"[edit]\nsteps = [1]", "[edit] steps: must be a text or a number, not [1]"),
        (b"[edit]\nverify = 'yes'", "[edit] verify: must be true or false, not 'yes'"),
        (b"[edit]\ndevice = 'abacus'", "[edit] device: argument --device: invalid choice: 'abacus'"),
        (b"[edit]\nbundle = 'https://host/x'", "[edit] bundle: argument BUNDLE: takes files of this machine"),
        (b"[sharpen]\nx = 1", "has 'sharpen': its tables are [edit]"),
        (b"edit = 4", "has 'edit': its tables are [edit]"),
        (b"[edit", "is not TOML: "),
        (b"\xff", "is not TOML: "),
        (b"x = " + b"[" * 5000, "is not TOML: "),
        (b"#" * (1 << 20) + b"#", "is larger than 1 MiB: not a configuration"),
    ],
)
def test_mistakes_in_the_file(config: Path, text: bytes, message: str) -> None:
    config.write_bytes(text)
    with pytest.raises(KontextError) as error:
        read("here")
    assert str(config) in str(error.value)
    assert message in str(error.value)


def test_a_file_that_is_none(config: Path) -> None:
    os.mkfifo(config)
    with pytest.raises(KontextError, match="is not a regular file"):
        read("here")
    config.unlink()
    config.touch()
    config.chmod(0)
    if os.access(config, os.R_OK):  # root
        config.chmod(stat.S_IRUSR)
    else:
        with pytest.raises(KontextError, match="cannot be read: Permission denied"):
            read("here")
