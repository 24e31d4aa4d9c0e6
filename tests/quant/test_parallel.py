"""Parts of a weight on all cores: order, threads, faults."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from kontext.quant.parallel import on_all_cores  # noqa: E402


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_are_in_order_and_each_operation_has_one_thread(threads: int) -> None:
    def work(part: int) -> tuple[int, int, bool]:
        return part * part, torch.get_num_threads(), threading.current_thread() is threading.main_thread()

    found = on_all_cores(work, range(20))
    assert [value for value, *_ in found] == [part * part for part in range(20)]
    assert {each[1:] for each in found} == {(1, threads == 1)}
    # The caller's number is as before, and so is that of threads started later.
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert (torch.get_num_threads(), *later) == (threads, threads)


def test_a_single_part_is_made_here_with_all_threads(threads: int) -> None:
    assert on_all_cores(lambda _: torch.get_num_threads(), ["whole"]) == [threads]


def test_faults_are_the_callers(threads: int) -> None:
    with pytest.raises(ZeroDivisionError):
        on_all_cores(lambda part: 1 // part, [1, 0, 1])
    assert torch.get_num_threads() == threads
