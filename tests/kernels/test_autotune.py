"""The choice among candidates and among tiles, where nothing can be measured and where something was."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from kontext.kernels import autotune, launch  # noqa: E402


def computed(length: int) -> float:
    """1 + 1 by the first candidate, 1 * 3 by the second."""
    x, out = torch.ones(length), []

    def first() -> None:
        out[:] = [x + 1]

    def second() -> None:
        out[:] = [x * 3]

    autotune.fastest(f"test {length}", {"first": first, "second": second})()
    return float(out[0][0])


def test_the_first_unless_measured_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("here it is measured")
    monkeypatch.setattr(autotune, "MEASURED", {"test 3": {"first": 2.0, "second": 1.0}})
    assert [computed(2), computed(3)] == [2, 3]


def test_compiled_code_keeps_to_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "MEASURED", {"test 3": {"first": 2.0, "second": 1.0}})
    torch.compiler.reset()

    @torch.compile(backend="eager", fullgraph=True, dynamic=False)
    def compiled(x: torch.Tensor) -> torch.Tensor:
        out = []

        def first() -> None:
            out[:] = [x + 1]

        def second() -> None:
            out[:] = [x * 3]

        autotune.fastest(f"test {x.shape[0]}", {"first": first, "second": second})()
        return out[0]

    assert [float(compiled(torch.ones(length))[0]) for length in (2, 3, 2)] == [2, 3, 2]


def test_tiles_the_fastest_or_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("here it is measured")
    started: list[int] = []
    monkeypatch.setattr(launch.Launch, "run", lambda self: started.append(self.constants["TILE"]))

    def plan(tile: int) -> launch.Launch:
        return launch.Launch(None, (1, 1, 1), {}, {"TILE": tile}, warps=4, stages=1)

    tiles = ((128, 64, 8, 3), (64, 64, 4, 3))
    monkeypatch.setattr(autotune, "MEASURED", {"tile of x": {"128x64x8x3": 2.0, "64x64x4x3": 1.0}})
    autotune.fastest_tile("x", tiles, plan)
    autotune.fastest_tile("not measured", tiles, plan)
    autotune.fastest_tile("x", tiles[:1], plan)
    monkeypatch.setattr(autotune, "triton", None)  # bundles contain only the first
    autotune.fastest_tile("x", tiles, plan)
    assert started == [1, 0, 0, 0]


def test_what_candidates_add_to_is_restored_after_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    total = torch.zeros(3)

    def measure(candidate: autotune.Candidate) -> float:
        candidate()
        return 1.0

    monkeypatch.setattr(autotune, "MEASURED", {})
    monkeypatch.setattr(autotune, "measure_milliseconds", measure)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    autotune.fastest("sum", {"first": lambda: total.add_(1), "second": lambda: total.add_(1)}, total)()
    assert total.tolist() == [1, 1, 1]
    assert autotune.MEASURED == {"sum": {"first": 1.0, "second": 1.0}}
