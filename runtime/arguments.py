"""The arguments of `kontext-edit`: of its words, then the picture of `--like`, then the user's file, then defaults."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..command import Parser
from ..errors import KontextError
from ..regular_files import read_regular
from .user_config import config_file, read_config

ONE_RUN = (
    *("image", "prompt", "prompt_file", "output", "like", "mask", "init_image", "preview", "json", "verbose"),
    *("config", "print_completion", "lora"),
)
"""Destinations that the user's file cannot set."""

MAX_PROMPT_BYTES = 1 << 20

STDIN = "-"


def read_arguments(parser: Parser, words: Sequence[str], run_by: Collection[str]) -> argparse.Namespace:
    """All arguments, by destination; `like` is read, and `origins` says where those come from that are neither on the
    command line nor the defaults.

    Args:
        parser: of `kontext-edit`.
        words: of the command line.
        run_by: destinations of the flags that say what runs the networks: they come from one place together.

    Raises:
        KontextError: one is wrong or missing.
    """
    given = parser.given(words)
    config = read_config("edit", parser, ONE_RUN) if given.get("config", True) else {}
    like, recorded = None, dict[str, Any]()
    if "like" in given:
        from .like import read_like

        given["like"] = like = read_like(given["like"])
        recorded = like.arguments(run_by)
    local = {*run_by, "bundle", "verify", "require_digest", "allow_links"}
    if "server" in given:
        config, recorded = without(config, local), without(recorded, run_by)
    elif "bundle" in given:
        config = without(config, ("server",))
    elif "server" in config:
        recorded = without(recorded, run_by)
    if run_by & given.keys():
        config, recorded = without(config, run_by), without(recorded, run_by)
    elif run_by & recorded.keys():
        config = without(config, run_by)
    given |= read_prompt(given)
    origins = dict.fromkeys(config, str(config_file())) | dict.fromkeys(recorded, str(like and like.path))
    arguments = argparse.Namespace(
        **{**parser.defaults(), **config, **recorded, **given},
        origins={name: place for name, place in origins.items() if name not in given},
    )
    missing = [
        flag
        for flag, dest in (("-p/--prompt", "prompt"), ("-o/--output", "output"))
        if getattr(arguments, dest) is None
    ]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return arguments


def without(values: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def read_prompt(given: Mapping[str, Any]) -> dict[str, str]:
    """The prompt of `--prompt-file`, if it is given, without the line break at its end."""
    path = given.get("prompt_file")
    if path is None:
        return {}
    if "prompt" in given:
        raise KontextError("name either --prompt or --prompt-file")
    if str(path) == STDIN and Path(STDIN) in given.get("image", ()):
        raise KontextError("--prompt-file - and -i - both read stdin: only one of them can")
    name = "stdin" if str(path) == STDIN else str(path)
    try:
        if str(path) == STDIN:
            data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
        else:
            data = read_regular(path, MAX_PROMPT_BYTES, "a prompt")
    except OSError as error:
        raise KontextError(f"{name} cannot be read: {error.strerror}") from None
    if len(data) > MAX_PROMPT_BYTES:
        raise KontextError(f"{name} is larger than {MAX_PROMPT_BYTES >> 20} MiB: not a prompt")
    try:
        return {"prompt": data.decode("utf-8-sig").rstrip("\r\n")}
    except UnicodeDecodeError:
        raise KontextError(f"{name} is not UTF-8") from None
