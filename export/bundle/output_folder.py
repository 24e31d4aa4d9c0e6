"""The folder OUT that an export writes: new, or an existing one of the same kind and nothing else, replaced as a whole.

It is written as OUT.partial, with a journal in it, and renamed to OUT. The order of `publish` makes every moment at
which a process can be killed one that `settle` knows:

| OUT | OUT.partial | OUT.replaced | killed | the next export |
|---|---|---|---|---|
| absent or old | new, with its journal | | before the renames | resumes |
| new, with its journal | old | | after both were exchanged | deletes the old one, then the journal |
| absent | new, with its journal | old | between two renames, without an exchange | restores the old one, resumes |
| new, with its journal | | old, or part of it | while the old one was deleted | as above |

All of it happens with OUT.partial.lock locked, which is beside these folders since a lock in one would move with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

from ...errors import KontextError
from ...files import fsync
from ...locks import locked_file, locked_folder
from .folder_kind import JOURNAL, Kind

RENAME_EXCHANGE = 2
"""Of Linux's renameat2(2)."""

AT_FDCWD = -100


def partial_folder(output: Path) -> Path:
    """OUT.partial: what `output` is called until it is finished."""
    return output.with_name(output.name + ".partial")


def replaced_folder(output: Path) -> Path:
    """OUT.replaced: what an existing `output` is called while it is deleted."""
    return output.with_name(output.name + ".replaced")


@contextlib.contextmanager
def locked_output(output: Path, kind: Kind) -> Iterator[Path]:
    """A context in which no other process exports to `output`, and nothing is left of one that was killed.

    Yields:
        the absolute path of `output`; if it is a link to a folder, that of the folder.

    Raises:
        KontextError: another process exports to it, or it cannot be written.
    """
    output = real_output(output)
    lock = output.with_name(output.name + ".partial.lock")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked_file(lock, f"another export is writing {output}"))
            settle(output, kind)
        except OSError as fault:
            raise KontextError(f"cannot write {fault.filename or output}: {fault.strerror}") from None
        yield output


def real_output(output: Path) -> Path:
    """The absolute path of `output`, whose last part is a name; of a link, what it leads to.

    Raises:
        KontextError: it has no name, or no folder to be in.
    """
    try:
        through = output.name == ".." or output.is_symlink()
        output = output.resolve() if through else output.absolute()
        if not output.name:
            raise KontextError(f"{output} cannot be replaced: choose a name in it")
        if not output.parent.is_dir():
            raise KontextError(f"{output.parent} is not a folder: make it first")
    except (OSError, RuntimeError) as fault:  # before Python 3.13 a link to itself is a RuntimeError
        raise KontextError(f"cannot write {output}: {getattr(fault, 'strerror', None) or fault}") from None
    return output


def check_output(output: Path, kind: Kind, force: bool) -> None:
    """Checks before the work that `output` can be written. Raises KontextError, which says what is in the way."""
    with locked_output(output, kind) as folder:
        check_free(folder, kind, force)


def check_free(output: Path, kind: Kind, force: bool) -> None:
    """Checks that `output` is free: there is none, or with `force` one of this kind that holds nothing else.

    One whose export was killed just after its renames is free too: `published` says whether it is the wanted one.

    Raises:
        KontextError: says what is in the way.
    """
    if not os.path.lexists(output):
        return
    if not output.is_dir():
        raise KontextError(f"{output} exists and is not a folder")
    if kind.listed(output) is None and any(output.iterdir()):
        raise KontextError(f"{output} exists and is not a {kind.title}: choose another folder")
    if is_unsettled(output, kind):
        return
    if not force:
        raise KontextError(f"{output} exists: give --force to replace it, or choose another folder")
    for name in kind.strangers(output):
        raise KontextError(
            f"{output / name} is not part of the {kind.name}: move it away, then --force will replace {output}"
        )
    replaced = replaced_folder(output)
    if os.path.lexists(replaced):
        raise KontextError(f"{replaced} is in the way: move it away, then --force will replace {output}")


def is_unsettled(output: Path, kind: Kind) -> bool:
    """Whether `output` is a whole folder that still has the journal of its export."""
    return (output / JOURNAL).is_file() and kind.is_at(output)


def settle(output: Path, kind: Kind) -> None:
    """Ends the renames in which an export was killed. The journal of an OUT is left for `published`."""
    partial, replaced = partial_folder(output), replaced_folder(output)
    if not os.path.lexists(output):
        if kind.is_at(replaced):
            replaced.rename(output)
            fsync(output.parent)
    elif is_unsettled(output, kind):
        if kind.is_at(partial) and not (partial / JOURNAL).exists() and not os.path.lexists(replaced):
            partial.rename(replaced)
        remove_replaced(replaced, kind)


def publish(partial: Path, output: Path, kind: Kind, force: bool) -> None:
    """Renames OUT.partial to OUT, deletes the OUT that it replaces, then the journal. `output` is locked.

    Where the file system can exchange two names (ext4, xfs, btrfs, tmpfs on Linux) there is an OUT at every moment,
    the old or the new one; elsewhere there is none between two renames.

    Raises:
        KontextError: something is in the way by now; OUT.partial is left.
    """
    check_free(output, kind, force)
    fsync(partial)
    with contextlib.ExitStack() as stack:
        if os.path.lexists(output):
            stack.enter_context(locked_folder(output, f"another process is using {output}: try again later"))
            replaced = replaced_folder(output)
            if exchange(partial, output):
                partial.rename(replaced)
            else:
                output.rename(replaced)
                partial.rename(output)
            fsync(output.parent)
            remove_replaced(replaced, kind)
        else:
            partial.rename(output)
            fsync(output.parent)
    remove_journal(output)


def remove_journal(output: Path) -> None:
    """The end of an export: nothing but OUT is left."""
    (output / JOURNAL).unlink(missing_ok=True)
    fsync(output)


def remove_replaced(replaced: Path, kind: Kind) -> None:
    """Deletes OUT.replaced, but for files that somebody put there meanwhile."""
    if not os.path.lexists(replaced):
        return
    own = kind.is_at(replaced) or (replaced.is_dir() and not any(replaced.iterdir()))  # the marker goes last
    if not own or not kind.remove(replaced):
        warnings.warn(
            f"{replaced} is left, since it holds files that are not part of the {kind.name}", stacklevel=1
        )


def exchange(first: Path, second: Path) -> bool:
    """Exchanges the names of two folders at once; False where this is not possible."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # no such function in this system's C library
        return False
    done = renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE)
    return bool(done == 0)  # whatever is wrong, the renames that follow meet it and name it
