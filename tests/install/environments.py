"""Fresh environments for installation tests: which Pythons there are, pip and commands in each environment."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
MINORS = (10, 11, 12, 13)

CLEAN = {
    **{name: text for name, text in os.environ.items() if name not in ("PYTHONPATH", "TRITON_INTERPRET")},
    "PYTHONNOUSERSITE": "1",
}


@functools.cache
def pythons() -> dict[int, str]:
    """Minor version → interpreter, of the supported ones that this machine has, pyenv's among them."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = {}
    for minor in MINORS:
        candidates = [sys.executable] if sys.version_info[1] == minor else []
        candidates += [place for place in [shutil.which(f"python3.{minor}")] if place]
        candidates += [str(place) for place in sorted(root.glob(f"3.{minor}.*/bin/python3"))]
        test = f"import sys, venv, ssl; assert sys.version_info[:2] == (3, {minor})"
        for place in candidates:
            if subprocess.run([place, "-c", test], capture_output=True).returncode == 0:
                found[minor] = place
                break
    return found


@dataclass
class Environment:
    """A virtual environment; `made` makes one."""

    folder: Path
    scratch: Path
    """The folder that commands run in."""
    history: list[str] = field(default_factory=list)
    """What pip was told, with the wheel as `.`."""
    removed: dict[str, str] | None = None
    """The versions that it had when it was removed."""

    @classmethod
    def made(cls, folder: Path, python: str = sys.executable) -> Environment:
        subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], check=True, env=CLEAN)
        scratch = folder.with_name(f"{folder.name}-scratch")
        scratch.mkdir()
        return cls(folder, scratch)

    def pip(self, *words: str) -> None:
        """Runs this interpreter's pip on the environment."""
        command = [sys.executable, "-m", "pip", "--python", str(self.folder / "bin" / "python"), *words]
        if words[0] == "install":
            command.append("--no-compile")  # thousands of files, of which the tests import few
        done = subprocess.run([*command, "-qq"], capture_output=True, text=True, env=CLEAN, check=False)
        assert done.returncode == 0, f"pip {shlex.join(words)}: {done.stderr}"

    def install(
        self, wheel: Path, extras: str = "", *more: str, constraints: Path | None = CONSTRAINTS
    ) -> None:
        """`pip install [-c constraints.txt] '.[extras]'`, from the wheel."""
        wanted = f"[{extras}]" if extras else ""
        fixed = ["-c", str(constraints)] if constraints else []
        self.pip("install", *fixed, f"{wheel}{wanted}", *more)
        self.history.append(wanted)

    def run(self, program: str, *words: object) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / "bin" / program), *map(str, words)]
        return subprocess.run(
            command, capture_output=True, text=True, env=CLEAN, cwd=self.scratch, timeout=1200, check=False
        )

    def succeed(self, program: str, *words: object) -> str:
        """What a command that must succeed printed, warnings included."""
        done = self.run(program, *words)
        assert done.returncode == 0, f"{program} {words}: {done.stderr}"
        return done.stdout + done.stderr

    def refuse(self, program: str, *words: object) -> str:
        """The one line of a command that must fail with exit code 2."""
        done = self.run(program, *words)
        assert done.returncode == 2, f"{program} {words}: {done.stdout}{done.stderr}"
        assert done.stderr.startswith("error: "), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr.strip()

    def python(self, code: str) -> str:
        return self.succeed("python", "-c", code).strip()

    def providers(self) -> list[str]:
        return self.python("import onnxruntime; print(*onnxruntime.get_available_providers())").split()

    def versions(self) -> dict[str, str]:
        """Installed distribution → version, names as pip normalizes them; of a removed environment too."""
        if self.removed is not None:
            return self.removed
        code = (
            "import json; from importlib.metadata import distributions as d; "
            "print(json.dumps({each.name: each.version for each in d()}))"
        )
        return {normalized(name): version for name, version in json.loads(self.python(code)).items()}

    def remove(self) -> None:
        """Frees its space, gigabytes with some extras; what its commands wrote stays."""
        self.removed = self.versions()
        shutil.rmtree(self.folder)

    def follow(self, message: str) -> None:
        """Types the commands that a message ends with."""
        found = re.search(r": (pip .*?)(?:[,;] or.*)?$", message.splitlines()[0])
        assert found, message
        for command in found[1].split(" && "):
            program, *words = shlex.split(command)
            assert program == "pip", message
            self.pip(*words)


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lower_bounds(requirements: Sequence[str]) -> list[str]:
    """`name>=version` → `name==version`."""
    return [requirement.replace(">=", "==") for requirement in requirements if ">=" in requirement]
