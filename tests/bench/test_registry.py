"""The subcommands' modules have the functions that their interfaces promise."""

from __future__ import annotations

import inspect

import pytest

pytest.importorskip("torch")

from kontext.bench.registry import SUBCOMMANDS, Benchmark, Entry, Subcommand


def functions(interface: type) -> dict[str, list[str]]:
    """An interface's functions and their parameters."""
    return {
        name: list(inspect.signature(function).parameters)[1:]
        for name, function in inspect.getmembers(interface, inspect.isfunction)
        if not name.startswith("_")
    }


@pytest.mark.parametrize("entry", SUBCOMMANDS, ids=lambda entry: entry.name)
def test_a_module_implements_its_interface(entry: Entry) -> None:
    module = entry.load()
    for name, parameters in functions(Benchmark if entry.measures else Subcommand).items():
        if entry.measures or name in functions(Subcommand):
            found = list(inspect.signature(getattr(module, name)).parameters)
            assert [each.lstrip("_") or "result" for each in found] == parameters, f"{entry.module}.{name}"


def test_names_are_unique_and_summaries_are_short() -> None:
    names = [entry.name for entry in SUBCOMMANDS]
    assert len(set(names)) == len(names)
    for entry in SUBCOMMANDS:
        assert len(entry.summary) < 55
