"""The front's copy of the contract, and that its files fit together; tests/runtime/server/test_front.py runs it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kontext.export.server import front
from kontext.export.server.repository import TEMPLATES
from kontext.runtime.server import contract


def test_every_input_is_in_the_contract_of_the_front() -> None:
    text = front.contract_table(contract.Limits())
    for tensor in contract.INPUTS:
        found = re.search(rf"^    {tensor.name} = {{(.*?)}}", text, re.DOTALL | re.MULTILINE)
        assert found, tensor.name
        assert f'datatype = "{tensor.datatype}"' in found[1]
        most = contract.Limits().max_references if tensor.shape == (-1,) else tensor.shape[0]
        assert f"most = {most}," in found[1]
    for listed in contract.OUTPUTS.values():
        assert all(f"    {tensor.name} = true," in text for tensor in listed)


def test_numbers_have_their_size() -> None:
    assert {each.datatype for each in contract.INPUTS} - {"BYTES"} == set(front.BYTES)


def test_what_start_replaces_is_what_the_configuration_has() -> None:
    words = set(re.findall("@[A-Z_]+@", (TEMPLATES / "front/nginx.conf").read_text()))
    assert words == set(re.findall("@[A-Z_]+@", (TEMPLATES / "front/start.sh").read_text()))


def test_the_files_are_the_image() -> None:
    copied = re.search("^COPY (.*) /opt", (TEMPLATES / "front/Dockerfile").read_text(), re.MULTILINE)
    assert copied is not None
    assert {*copied[1].split(), "Dockerfile"} == {*front.FILES, "contract.lua"}


def test_the_script_is_a_shells(tmp_path: Path) -> None:
    if shutil.which("sh") is None:
        pytest.skip("there is no shell")
    script = tmp_path / "start.sh"
    script.write_text((TEMPLATES / "front/start.sh").read_text().replace("$$", "$"))
    subprocess.run(["sh", "-n", script], check=True)
