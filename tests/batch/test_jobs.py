"""Rows as jobs: values as `kontext-edit` reads them, names, and what makes another job of one."""

from __future__ import annotations

import datetime
import inspect
from pathlib import Path
from typing import Any

import pytest

from kontext.batch.jobs import Job, columns, files_of, job_digest, make_jobs
from kontext.batch.rows import Row
from kontext.runtime import Pipeline, cli


def jobs_of(*rows: dict[str, Any], **defaults: Any) -> list[Job]:
    return make_jobs(
        [Row(number, "line", values) for number, values in enumerate(rows, 1)], Path("/jobs"), defaults
    )


def test_every_option_of_an_edit_is_a_column() -> None:
    """What `Pipeline.edit` takes and `kontext-edit` has a flag for, but for several pictures of one edit."""
    flags = {action.dest for action in cli.parser()._actions}
    options = set(inspect.signature(Pipeline.edit).parameters) & flags
    assert set(columns()) - {"id", "output"} == options - {"num_images"}


def test_values_of_all_kinds_are_those_of_the_command_line() -> None:
    spelled: list[dict[str, Any]] = [
        {"steps": 4, "size": "64x96", "seed": 7, "guidance": 2, "mask": "m.png", "paste-back": True},
        {
            "steps": "4",
            "size": [64, 96],
            "seed": "7",
            "guidance": "2.0",
            "mask": "/jobs/m.png",
            "paste_back": "yes",
        },
        {"steps": 4.0, "size": [64.0, 96.0], "seed": 7.0, "guidance": 2.0, "mask": "m.png", "paste_back": 1},
    ]
    found = jobs_of(*({"prompt": "--x", "image": ["a.png", "/b.png"], **each} for each in spelled))
    assert not [job.fault for job in found if job.fault]
    flags = (
        "BUNDLE -p=--x -o x.png --steps 4 --size 64x96 --seed 7 --guidance 2 --mask /jobs/m.png --paste-back"
    )
    expected = vars(cli.parser().parse_args([*flags.split(), "-i", "/jobs/a.png", "-i", "/b.png"]))
    for job in found:
        assert job.options is not None
        assert vars(job.options) == {name: expected[name] for name in vars(job.options)}
        assert files_of(job.options) == [Path("/jobs/a.png"), Path("/b.png"), Path("/jobs/m.png")]
    assert (
        len({job_digest(job, "b", dict.fromkeys(files_of(job.options), "")) for job in found if job.options})
        == 3
    )
    assert [job.name for job in found] == ["000001.png", "000002.png", "000003.png"]


def test_flags_hold_for_rows_without_their_own() -> None:
    one, two = jobs_of({"prompt": "a"}, {"steps": 9}, prompt="b", steps=3, mask=Path("m.png"))
    assert (one.options.prompt, one.options.steps) == ("a", 3)  # type: ignore[union-attr]
    assert (two.options.prompt, two.options.steps) == ("b", 9)  # type: ignore[union-attr]
    assert one.options.mask == Path("m.png")  # type: ignore[union-attr]  # where the command was typed


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "it has no prompt"),
        ({"prompt": "x", "steps": "many"}, "steps: invalid int value: 'many'"),
        ({"prompt": "x", "steps": 2.5}, "steps: invalid int value: '2.5'"),
        ({"prompt": "x", "steps": True}, "steps: it must be a text or a number, not bool"),
        ({"prompt": "x", "steps": [1]}, "steps: it must be a text or a number, not list"),
        ({"prompt": {"en": "x"}}, "prompt: it must be a text or a number, not dict"),
        (
            {"prompt": "x", "seed": datetime.datetime(2026, 1, 1)},
            "seed: it must be a text or a number, not datetime",
        ),
        ({"prompt": "x", "size": "large"}, "--size takes WIDTHxHEIGHT"),
        ({"prompt": "x", "paste_back": "perhaps"}, "paste_back: it must be true or false, not 'perhaps'"),
        ({"prompt": "x", "reference_method": "pile"}, "reference_method: invalid choice"),
        ({"prompt": "x", "image": "https://example.org/a.png"}, "image: takes files of this machine"),
        ({"prompt": "x", "image": [["a.png"]]}, "image: it must be a text"),
        ({"prompt": "x", "id": "../a"}, "'../a.png' is no name for a picture's file"),
        ({"prompt": "x", "output": "results.jsonl"}, "is no name"),
        ({"prompt": "x", "output": ".a.png"}, "is no name"),
        ({"prompt": "x", "output": "a" * 300 + ".png"}, "is no name"),
        ({"prompt": "x", "output": "a\x1b.png"}, "is no name"),
        ({"prompt": "x", "output": "a.docx"}, "cannot write pictures of type '.docx'"),
        ({"prompt": "\ud800"}, "prompt: it is not valid Unicode text"),
    ],
)
def test_rows_that_are_wrong_say_what_is(values: dict[str, Any], message: str) -> None:
    job, good = jobs_of(values, {"prompt": "good"})
    assert message in job.fault
    assert job.options is None
    assert good.options is not None


def test_of_two_jobs_with_a_name_the_first_has_it() -> None:
    found = jobs_of(
        {"prompt": "a", "id": "cat"},
        {"prompt": "b", "id": "cat"},
        {"prompt": "c", "id": "dog", "output": "cat.png"},
        {"prompt": "d", "id": 5.0},
        {"prompt": "e", "id": "5"},
    )
    assert [job.fault for job in found] == [
        "",
        "its id cat is also that of line 1",
        "its output cat.png is also that of line 1",
        "",
        "its id 5 is also that of line 4",
    ]
    assert [job.key for job in found] == ["cat", 2, "dog", "5", 5]


def test_what_makes_another_job() -> None:
    """The bundle, any option, any byte of a picture, the name; not the place in the list, nor a default spelled out."""
    base = {"prompt": "x", "id": "a", "image": "p.png"}
    path = Path("/jobs/p.png")

    def digest(values: dict[str, Any], bundle: str = "b", content: str = "1", **defaults: Any) -> str:
        (job,) = jobs_of(values, **defaults)
        return job_digest(job, bundle, {path: content})

    same = digest(base)
    assert {same} == {digest({**base, "seed": 0, "strength": 1}), digest(base, seed=0)}
    assert digest({**base, "seed": 1}) == digest(base, seed=1)
    others = [
        digest({**base, "seed": 1}),
        digest({**base, "id": "c"}),
        digest({**base, "output": "b.png"}),
        digest({**base, "prompt": "y"}),
        digest({**base, "image": ["p.png", "p.png"]}),
        digest(base, bundle="c"),
        digest(base, content="2"),
        digest({**base, "mask": "p.png"}),
    ]
    assert len({same, *others}) == len(others) + 1
