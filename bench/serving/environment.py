"""The Python environment that holds Triton Inference Server: its binary and Python backend come from a wheel.

`make server` builds it in build/server, about 400 MB; without a clone it goes to the cache. Linux only, like the wheel.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from ...errors import KontextError
from ...runtime.cache import cache_folder

ROOT = Path(__file__).resolve().parents[2]
CLONE = (ROOT / "pyproject.toml").is_file()
ENVIRONMENT = ROOT / "build" / "server" if CLONE else cache_folder() / "server"
REQUIREMENTS = ROOT / "constraints-serve.txt"
STAMP = "requirements.sha256"


def is_ready(environment: Path = ENVIRONMENT, requirements: Path = REQUIREMENTS) -> bool:
    """Whether `environment` was made from the present `requirements`, with this version of Python."""
    stamp = environment / STAMP
    return stamp.is_file() and requirements.is_file() and stamp.read_text() == digest(requirements)


def digest(requirements: Path) -> str:
    return hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()


def make_environment(environment: Path = ENVIRONMENT, requirements: Path = REQUIREMENTS) -> None:
    """Makes `environment` with pip unless it is ready; takes about half a minute.

    Raises:
        KontextError: pip failed (the message is its last line), or the wheel does not support this version of Python.
    """
    environment.parent.mkdir(parents=True, exist_ok=True)
    with environment.with_name(environment.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_ready(environment, requirements):
            return
        print(
            f"installing NVIDIA Triton Inference Server in {environment} with pip (about 400 MB)", flush=True
        )
        venv.create(environment, clear=True, with_pip=True)
        pip = [str(environment / "bin/python"), "-I", "-m", "pip", "install", "--disable-pip-version-check"]
        done = subprocess.run(  # stdout has pip's progress bars
            [*pip, "--no-deps", "-r", str(requirements)], stderr=subprocess.PIPE, text=True, check=False
        )
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise KontextError(f"pip cannot install the server in {environment}: {last}")
        backends = environment / "backends" / "python"
        wheel = packages(environment) / "pytriton" / "tritonserver"
        shutil.copytree(wheel / "backends" / "python", backends)
        version = "{}.{}".format(*sys.version_info)
        stub = wheel / "python_backend_stubs" / version / "triton_python_backend_stub"
        if not stub.exists():
            raise KontextError(f"the server's wheel has no Python backend for Python {version}")
        shutil.copy2(stub, backends)
        (environment / STAMP).write_text(digest(requirements))


def packages(environment: Path) -> Path:
    return environment / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
