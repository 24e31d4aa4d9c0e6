"""Shared flags: counts and names in lists, and the settings of an edit."""

from __future__ import annotations

import argparse

import pytest

from kontext.bench.cli import main, parser
from kontext.bench.flags import (
    add_edit_flags,
    at_least,
    edit_settings,
    parse_counts,
    parse_names,
    usable_seed,
)
from kontext.bench.registry import SUBCOMMANDS
from kontext.errors import KontextError


def test_counts_and_names() -> None:
    assert parse_counts("28, 4", "--steps") == [28, 4]
    assert parse_names("a, b", "--formats", ("a", "b", "c")) == ["a", "b"]
    with pytest.raises(KontextError, match="--formats takes a, b; not 'c', 'd'"):
        parse_names("a,c,d", "--formats", ("a", "b"))


@pytest.mark.parametrize("text", ["", "0", "4,-1", "4,x", "4,,5"])
def test_counts_are_positive_whole_numbers(text: str) -> None:
    with pytest.raises(KontextError, match="--steps takes positive whole numbers"):
        parse_counts(text, "--steps")


def test_least_values() -> None:
    at_least(argparse.Namespace(steps=1), steps=1)
    with pytest.raises(KontextError, match="--steps must be at least 2, not 1"):
        at_least(argparse.Namespace(steps=1), steps=2)
    with pytest.raises(KontextError, match="--batch-size must be at least 1, not 0"):
        at_least(argparse.Namespace(batch_size=0), batch_size=1)


@pytest.mark.parametrize("name", [entry.name for entry in SUBCOMMANDS])
def test_seeds_of_every_command_have_one_range(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command with --seed refuses the same seeds in the same line, before it looks at anything else."""
    command = parser(name)._subparsers._group_actions[0].choices[name]  # type: ignore[union-attr,index]
    seeds = [action for action in command._actions if "--seed" in action.option_strings]
    for action in seeds:
        assert action.type is usable_seed


@pytest.mark.parametrize("text", ["-1", str(1 << 64)])
def test_seeds_out_of_range(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=rf"from 0 to 2\^64 - 1, not {text}"):
        usable_seed(text)
    assert main(["methods", "--seed", text]) == 2


def test_settings_of_an_edit() -> None:
    parser = argparse.ArgumentParser()
    add_edit_flags(parser, steps=4, repeat=5)
    settings = edit_settings(parser.parse_args(["--size", "96x64", "--prompt", "make it night"]))
    assert (settings["steps"], settings["repeat"], settings["size"]) == (4, 5, (96, 64))
    assert (settings["prompt"], settings["image"]) == ("make it night", None)
