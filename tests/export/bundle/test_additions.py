"""What is added to a finished bundle; tests/export/test_kernels.py and engines/test_build.py add to real ones."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kontext.errors import KontextError
from kontext.export.bundle.additions import locked


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "cannot write .*: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "x/y"), "cannot write x/y: Permission denied"),
    ],
)
def test_a_full_disk_is_one_line(fault: OSError, message: str, tmp_path: Path) -> None:
    with pytest.raises(KontextError, match=message), locked(tmp_path):
        raise fault
    with locked(tmp_path), pytest.raises(KontextError, match="another process is using"), locked(tmp_path):
        pass


def test_other_faults_are_bugs(tmp_path: Path) -> None:
    with pytest.raises(BrokenPipeError), locked(tmp_path):
        raise BrokenPipeError
    with pytest.raises(KontextError, match="nowhere does not exist"), locked(tmp_path / "nowhere"):
        pass
