"""Kills a process at a system call, with strace: `calls_of` lists what an action calls, `kill_at` kills it there.

The action runs in a fork of this process, so that one that takes milliseconds can be killed a thousand times.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CHANGES = re.compile(
    r"(rename|renameat|renameat2|unlink|unlinkat|rmdir|mkdir|mkdirat|link|linkat|symlink|flock|write)\(|openat?\(.*O_CREAT"
)
"""Calls that change what another process sees on the disk."""


@dataclass(frozen=True)
class Call:
    """The `number`th call of a name, from 1; `text` is strace's line."""

    name: str
    number: int
    text: str

    @property
    def changes(self) -> bool:
        return CHANGES.match(self.text) is not None


def reason_not_to() -> str | None:
    """Why nothing can be killed here, if so."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    try:
        return None if calls_of(lambda: os.getppid() and None) else "strace sees no system call"
    except RuntimeError as fault:
        return str(fault)


def calls_of(action: Callable[[], object]) -> list[Call]:
    """The system calls of an action, in order. Raises AssertionError if it fails."""
    status, lines = traced(action, [])
    assert status == 0, f"the action ended with {status}"
    seen: Counter[str] = Counter()
    calls = []
    for line in lines:
        if match := re.match(r"(\w+)\(", line):
            seen[match[1]] += 1
            calls.append(Call(match[1], seen[match[1]], line))
    return calls[:-1]  # but for its exit


def kill_at(action: Callable[[], object], call: Call) -> bool:
    """Runs an action and kills it when it enters a system call; False if it came to its end before."""
    inject = f"--inject={call.name}:signal=SIGKILL:when={call.number}"
    status, _ = traced(action, [inject])
    assert status in (0, -signal.SIGKILL), f"the action ended with {status}"
    return status != 0


def traced(action: Callable[[], object], options: list[str]) -> tuple[int, list[str]]:
    """Runs an action in a fork under strace; its exit code, negative for a signal, and strace's lines."""
    read, write = os.pipe()
    lines_read, lines_write = os.pipe()
    child = os.fork()
    if child == 0:
        run_child(action, read)
    try:
        with subprocess.Popen(
            ["strace", "-q", "-s", "200", "-p", str(child), "-o", f"/proc/self/fd/{lines_write}", *options],
            pass_fds=[lines_write],
            stderr=subprocess.PIPE,
        ) as strace:
            os.close(lines_write)
            try:
                wait_until_attached(child, strace)
                os.write(write, b"go")
                with open(lines_read, encoding="utf-8", errors="replace") as lines:
                    text = lines.read()
                _, status = os.waitpid(child, 0)
                child = 0
            finally:
                strace.kill()
    finally:
        os.close(read)
        os.close(write)
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), text.splitlines()


def run_child(action: Callable[[], object], go: int) -> None:
    code = 1
    with contextlib.suppress(BaseException):
        # Where only ancestors may trace (Yama), lets any process do it.
        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1 & 0xFFFFFFFFFFFFFFFF), 0, 0, 0)
        os.read(go, 2)
        action()
        code = 0
    os._exit(code)


def wait_until_attached(child: int, strace: subprocess.Popen[bytes]) -> None:
    for _ in range(10_000):
        if re.search(r"^TracerPid:\s+[1-9]", Path(f"/proc/{child}/status").read_text(), re.MULTILINE):
            return
        if strace.poll() is not None:
            assert strace.stderr is not None
            raise RuntimeError(f"strace cannot trace here: {strace.stderr.read().decode().strip()}")
        time.sleep(0.001)
    raise RuntimeError("strace does not come up")
