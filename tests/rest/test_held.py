"""Pictures behind links: they expire, and newer ones take their place."""

from __future__ import annotations

from kontext.rest.held import Held


def test_files_expire() -> None:
    now = [0.0]
    held = Held(seconds=10, clock=lambda: now[0])
    name = held.put(b"picture", "image/png", "png")
    now[0] = 9.9
    assert (file := held.get(name)) is not None
    assert (file.data, file.media_type) == (b"picture", "image/png")
    now[0] = 10.1
    assert held.get(name) is None
    assert held.bytes == 0


def test_the_oldest_leave_where_there_is_no_room() -> None:
    held = Held(most_bytes=10)
    names = [held.put(bytes(4), "image/png", "png") for _ in range(3)]
    assert [held.get(name) is not None for name in names] == [False, True, True]
    held.put(bytes(11), "image/png", "png")
    assert not held.files
    assert len(set(names)) == 3
