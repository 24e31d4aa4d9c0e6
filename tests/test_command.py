"""What every command line does: one line for an error, its exit code, Ctrl-C, closed pipes, `--version`."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NoReturn

import pytest

from kontext.command import Parser, local_name, local_path, run_command
from kontext.errors import KontextError
from kontext.installation import VERSION, install_command


def raising(error: BaseException) -> NoReturn:
    raise error


def a_parser() -> Parser:
    parser = Parser(prog="kontext-some")
    parser.add_argument("--steps", type=int)
    parser.add_subparsers(dest="command").add_parser("one").add_argument("file")
    return parser


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--foo"], "error: unrecognized arguments: --foo (kontext-some --help shows the flags)\n"),
        (
            ["one", "file", "--foo"],
            "error: unrecognized arguments: --foo (kontext-some one --help shows the flags)\n",
        ),
        (
            ["--steps", "x"],
            "error: argument --steps: invalid int value: 'x' (kontext-some --help shows the flags)\n",
        ),
        (
            ["one"],
            "error: the following arguments are required: file (kontext-some one --help shows the flags)\n",
        ),
        (
            ["one", "--foo"],
            "error: unrecognized arguments: --foo (kontext-some one --help shows the flags)\n",
        ),
        (
            ["--foo", "one"],
            "error: the following arguments are required: file (kontext-some one --help shows the flags)\n",
        ),
    ],
)
def test_a_mistyped_flag_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: raising(AssertionError(a_parser().parse_args(words)))) == 2
    assert capsys.readouterr() == ("", line)


def test_a_parser_requires_again_what_a_mistyped_flag_hid() -> None:
    parser = Parser(prog="kontext-some")
    parser.add_argument("--prompt", required=True)
    with pytest.raises(KontextError, match="unrecognized arguments: --promt"):
        parser.parse_args(["--promt", "x"])
    with pytest.raises(KontextError, match="required: --prompt"):
        parser.parse_args([])
    assert parser.parse_args(["--prompt", "x"]).prompt == "x"


@pytest.mark.parametrize("words", [["--version"], ["one", "--version"]])
def test_version(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        run_command(lambda: a_parser().parse_args(words) and None)
    assert not exit.value.code
    assert capsys.readouterr().out == f"kontext-export {VERSION}\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KontextError("the file\n  is not there"), 2, "error: the file is not there\n"),
        (MemoryError(), 2, "error: not enough memory\n"),
        (
            ImportError("libcuda.so:\n not found"),
            2,
            "error: a library cannot be loaded: libcuda.so: not found\n",
        ),
        (
            ModuleNotFoundError("No module named 'psutil'", name="psutil"),
            2,
            f"error: this needs psutil, which is not installed: {install_command('bench')}\n",
        ),
        (
            ModuleNotFoundError("No module named 'strange'", name="strange"),
            2,
            "error: a library cannot be loaded: No module named 'strange'\n",
        ),
        (KeyboardInterrupt(), 130, "\ninterrupted; nothing is kept\n"),
    ],
)
def test_errors_are_one_line_and_a_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(lambda: raising(error), lambda: "; nothing is kept") == code
    assert capsys.readouterr() == ("", line)


def test_the_codes_of_work_that_ends(capsys: pytest.CaptureFixture[str]) -> None:
    assert [run_command(lambda: None), run_command(lambda: 0), run_command(lambda: 3)] == [0, 0, 3]
    assert capsys.readouterr() == ("", "")


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


def test_control_c_while_a_library_loads(capsys: pytest.CaptureFixture[str]) -> None:
    """Libraries raise another error in place of the interrupt, and keep that as its cause or context."""

    def cause() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            raise ImportError("initialization failed") from interrupt

    def context() -> None:
        try:
            cause()
        except ImportError:
            raise ImportError("numpy did not load")  # noqa: B904

    def recursion() -> None:
        try:
            cause()
        except ImportError:
            raise RecursionError("numpy's module __getattr__, half loaded")  # noqa: B904

    def explained() -> None:
        try:
            cause()
        except ImportError:
            raise KontextError("ONNX Runtime is installed but cannot be loaded") from None

    for work in (cause, context, recursion, explained):
        assert run_command(work) == 130
        assert capsys.readouterr() == ("", "\ninterrupted\n")


def test_warnings_are_one_line_and_only_inside(capsys: pytest.CaptureFixture[str]) -> None:
    before = warnings.showwarning
    assert run_command(lambda: warnings.warn("the prompt is cut", stacklevel=1)) == 0
    assert capsys.readouterr() == ("", "warning: the prompt is cut\n")
    assert warnings.showwarning is before


def in_process(work: str, *, unread: bool) -> tuple[int, str]:
    """The exit code and stderr of a command in a process of its own; `unread`: nobody reads its stdout."""
    code = (
        "import os, sys; from kontext.command import Parser, run_command; from kontext.errors import KontextError\n"
        f"def work():\n    {work}\nsys.exit(run_command(work))\n"
    )
    read, write = os.pipe()
    if unread:
        os.close(read)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, check=False, env=buffered)
    os.close(write)
    if not unread:
        os.close(read)
    return done.returncode, done.stderr


@pytest.mark.parametrize("work", ["print('x')", "print('x' * 10**6)"])
def test_a_closed_stdout_is_no_traceback(work: str) -> None:
    assert in_process(work, unread=True) == (1, "")


def test_a_closed_stdout_of_version_is_no_traceback() -> None:
    assert in_process("Parser().parse_args(['--version'])", unread=True) == (0, "")


def test_an_error_is_printed_although_stdout_is_closed() -> None:
    work = "print('x'); raise KontextError('no such file')"
    assert in_process(work, unread=True) == (2, "error: no such file\n")


FULL = "/dev/full"


@pytest.mark.skipif(not Path(FULL).exists(), reason="no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "work",
    [
        *("print('x')", "print('x' * 10**6)", "print('x'); return 1"),
        *("Parser().parse_args(['--version'])", "Parser().parse_args(['--help'])"),
    ],
)
def test_a_full_stdout_is_one_line(work: str, unbuffered: str) -> None:
    code = (
        "import sys; from kontext.command import Parser, run_command\n"
        f"def work():\n    {work}\nsys.exit(run_command(work))\n"
    )
    variables = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open(FULL, "w") as full:
        words = [sys.executable, "-c", code]
        done = subprocess.run(
            words, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=variables
        )
        deaf = subprocess.run(words, stdout=full, stderr=full, check=False, env=variables)
    assert (done.returncode, done.stderr) == (2, "error: cannot write: No space left on device\n")
    assert deaf.returncode == 2


def test_text_that_stdout_has_no_characters_for() -> None:
    code = "import sys; from kontext.command import run_command; sys.exit(run_command(lambda: print('a → \\ud800')))"
    variables = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    assert subprocess.run(
        [sys.executable, "-c", code], env=variables, check=True, capture_output=True
    ).stdout == (b"a \\u2192 \\ud800\n")


def test_another_broken_pipe_keeps_its_traceback() -> None:
    work = "read, write = os.pipe(); os.close(read); os.write(write, b'x')"
    code, errors = in_process(work, unread=False)
    assert code == 1
    assert "BrokenPipeError" in errors


def test_control_c_in_a_process() -> None:
    code = (
        "import sys, time; from kontext.command import run_command\n"
        "def work():\n    print('ready', flush=True); time.sleep(60)\n"
        "sys.exit(run_command(work))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background ignores Ctrl-C and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "\ninterrupted\n"
    assert process.returncode == 130


def test_sigterm_cleans_up_as_control_c_does(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from kontext.command import run_command; from kontext.temporary_folder import temporary_folder\n"
        "def work():\n"
        "    with temporary_folder('test', Path(sys.argv[1])) as folder:\n"
        "        print(folder.name, flush=True); time.sleep(60)\n"
        "sys.exit(run_command(work, lambda: '; nothing is kept'))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    name = process.stdout.readline().strip()
    assert (tmp_path / name).is_dir()
    process.terminate()
    assert process.communicate(timeout=60)[1] == "\ninterrupted; nothing is kept\n"
    assert process.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_a_second_sigterm_is_not_waited_for() -> None:
    code = (
        "import signal, sys, time; from kontext.command import run_command\n"
        "def work():\n"
        "    try:\n        signal.raise_signal(signal.SIGTERM)\n"
        "    finally:\n        signal.raise_signal(signal.SIGTERM)\n"
        "sys.exit(run_command(work))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGTERM


def test_an_ignored_sigterm_stays_ignored() -> None:
    code = (
        "import signal, sys; from kontext.command import run_command\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "sys.exit(run_command(lambda: signal.raise_signal(signal.SIGTERM) or 7))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 7


def test_a_warning_that_quotes_a_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: warnings.warn("a\nb \x1b[2J", stacklevel=1)) == 0
    assert capsys.readouterr().err == "warning: a b \\x1b[2J\n"


HUB = "https://huggingface.co/black-forest-labs/FLUX.1-Kontext-dev"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "https://example.org/a.png",
            "files of this machine, not https://example.org/a.png: download it first",
        ),
        ("S3://b/a.png", "not S3://b/a.png: download it first"),
        ("file:///tmp/a.png", "not file:///tmp/a.png: write /tmp/a.png"),
        ("data:image/png;base64,iVBO", "not data:image/png;base64,iVBO: write it to a file first"),
        (
            "data:image/png;base64," + "A" * 9000,
            f"not data:image/png;base64,{'A' * 18}…: write it to a file first",
        ),
        (HUB, f"not {HUB}: download it first, as by `hf download black-forest-labs/FLUX.1-Kontext-dev`"),
        (
            f"{HUB}/resolve/main/vae/a.safetensors?x=1",
            "`hf download black-forest-labs/FLUX.1-Kontext-dev vae/a.safetensors`",
        ),
    ],
)
def test_a_url_is_no_path(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="kontext-some")
    parser.add_argument("-i", type=local_path)
    assert run_command(lambda: raising(AssertionError(parser.parse_args(["-i", text])))) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: argument -i: takes files of this machine, not ")
    assert error.endswith(f"{message} (kontext-some --help shows the flags)\n")


@pytest.mark.parametrize(
    "text",
    [
        HUB,
        f"{HUB}/resolve/main/a.safetensors",
        f"{HUB}/tree/main",
        "hf://black-forest-labs/FLUX.1-Kontext-dev",
    ],
)
def test_a_url_of_the_hub_where_hub_ids_are_taken(text: str) -> None:
    with pytest.raises(
        argparse.ArgumentTypeError, match=r": write its hub id, black-forest-labs/FLUX\.1-Kontext-dev$"
    ):
        local_name(text, hub=True)


@pytest.mark.parametrize(
    "text",
    [
        "a:b.png",
        "C:\\a.png",
        "C://a.png",
        "./data:x",
        "data:x",
        "owner/name@main",
        "style.safetensors:0.8",
        "",
    ],
)
def test_paths(text: str) -> None:
    assert local_name(text) == text
    assert local_path(text) == Path(text)


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of flags in a subcommand too, which prints no script of its own."""
    with pytest.raises(SystemExit):
        a_parser().parse_args(["--print-completion", shell])
    script = capsys.readouterr().out
    assert "print-completion" in script
    if shell == "bash" and shutil.which("bash"):
        assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    with pytest.raises(KontextError, match="--print-completion"):
        a_parser().parse_args(["one", "--print-completion", shell])


def test_what_is_on_a_command_line() -> None:
    parser = Parser(prog="try")
    parser.add_argument("path", nargs="?", type=local_path)
    parser.add_argument("--level", type=int, default=3, required=True)
    parser.add_argument("--add", action="append", default=[])
    assert parser.given([]) == {}
    assert parser.given(["x", "--add", "1", "--add", "2"]) == {"path": Path("x"), "add": ["1", "2"]}
    assert parser.defaults() == {"path": None, "level": 3, "add": []}
    assert list(parser.flags()) == ["path", "level", "add"]
    with pytest.raises(KontextError, match="unrecognized arguments: --lvel"):
        parser.given(["--lvel", "1"])


@pytest.mark.parametrize("text", ["a" * 256, f"b/{'a' * 256}/c", "é" * 128, "a/" * 2048, "é/" * 1500])
def test_names_that_no_file_can_have(text: str) -> None:
    with pytest.raises(
        argparse.ArgumentTypeError, match="takes files of this machine, whose names are shorter than"
    ):
        local_path(text)


def test_a_second_control_c_while_the_first_is_reported_ends_the_process() -> None:
    code = (
        "import signal, sys; from kontext.command import run_command\n"
        "def work():\n    signal.raise_signal(signal.SIGINT)\n"
        "def after():\n    signal.raise_signal(signal.SIGINT)\n    return 'x'\n"
        "sys.exit(run_command(work, after))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
