"""What the torture tests share: every test here is marked `torture`, how many inputs are tried is an option, and an
input that breaks something is kept. `make torture` runs them; docs/reliability.md has the figures."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("torture")
    group.addoption("--inputs", type=int, default=2000, metavar="N", help="inputs for each reader")
    group.addoption("--first-seed", type=int, default=0, metavar="N", help="the seed of the first input")
    group.addoption("--minutes", type=float, default=2.0, metavar="N", help="how long the soak takes")
    group.addoption(
        "--keep",
        type=Path,
        default=None,
        metavar="FOLDER",
        help="where inputs that break something are written",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs before pytest applies `-m`, so that no file here can forget its marker."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.torture)


@pytest.fixture(scope="session")
def inputs(request: pytest.FixtureRequest) -> range:
    """The seeds of the inputs that each reader gets."""
    first = request.config.getoption("--first-seed", 0)
    return range(first, first + request.config.getoption("--inputs", 2000))


@pytest.fixture(scope="session")
def minutes(request: pytest.FixtureRequest) -> float:
    """How long the soak takes."""
    return request.config.getoption("--minutes", 2.0)


@pytest.fixture(scope="session")
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for inputs that broke something, each named after its reader and seed."""
    folder = request.config.getoption("--keep", None) or tmp_path_factory.mktemp("kept")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
