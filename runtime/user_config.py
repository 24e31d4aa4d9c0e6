"""The user's own defaults for flags: `[edit]` of `$XDG_CONFIG_HOME/kontext/config.toml` (else `~/.config/kontext/…`).

A key is a flag of the command without its dashes, a value what would stand behind it. Flags on the command line win.
"""

from __future__ import annotations

import difflib
import sys
from argparse import Action
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..command import URL, Parser
from ..errors import KontextError
from ..regular_files import read_regular
from .cache import user_folder

MAX_BYTES = 1 << 20

TABLES = ("edit",)
"""Of the file; each is a command's."""


def config_file() -> Path:
    return user_folder("XDG_CONFIG_HOME", ".config").with_name("kontext") / "config.toml"


def read_config(table: str, parser: Parser, not_defaults: Collection[str]) -> dict[str, Any]:
    """What the file says for a command: destination of a flag → its value; empty if there is no file.

    Args:
        table: of `TABLES`.
        parser: of the command; it checks the values as if they stood on the command line.
        not_defaults: destinations of flags that belong to one run, which the file must not have.

    Raises:
        KontextError: the file cannot be read, is no TOML, has an unknown key, or a value that the flag does not take.
    """
    path = config_file()
    try:
        text = read_regular(path, MAX_BYTES, "a configuration")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise KontextError(f"{path} cannot be read: {error.strerror}") from None
    tables = parse_toml(text, path)
    for name, value in tables.items():
        if name not in TABLES or not isinstance(value, dict):
            raise KontextError(
                f"{path} has {name!r:.60}: its tables are {', '.join(map('[{}]'.format, TABLES))}"
            )
    flags = {name: action for name, action in parser.flags().items() if action.dest not in not_defaults}
    found: dict[str, Any] = {}
    for key, value in tables.get(table, {}).items():
        if key not in flags:
            near = difflib.get_close_matches(key.replace("_", "-"), flags, 1)
            meant = f": did you mean {near[0]}?" if near else f"; it takes {', '.join(sorted(flags))}"
            raise KontextError(
                f"{path}: [{table}] has {key!r:.60}, which is no default of {parser.prog}{meant}"
            )
        try:
            found |= parser.given(words_of(flags[key], value, path.parent))
        except KontextError as error:
            raise KontextError(f"{path}: [{table}] {key}: {error}") from None
    return found


def words_of(action: Action, value: object, folder: Path) -> list[str]:
    """The words on a command line that say the same as a value of the file; a path is relative to `folder`."""
    switch = action.nargs == 0
    if isinstance(value, bool) != switch or not isinstance(value, (bool, int, float, str)):
        kind = "true or false" if switch else "a text or a number"
        raise KontextError(f"must be {kind}, not {value!r:.60}")
    if switch:
        return list(action.option_strings[-1:]) if value else []
    if not action.option_strings:  # BUNDLE
        if URL.match(str(value)):
            return [str(value)]  # it is refused as on the command line
        try:
            return [str(folder / Path(str(value)).expanduser())]
        except RuntimeError as error:  # a ~ without a home
            raise KontextError(str(error)) from None
    return [f"{action.option_strings[-1]}={value}"]


def parse_toml(text: bytes, path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise KontextError(f"{path} is not TOML: {error}") from None
