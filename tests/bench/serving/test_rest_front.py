"""What the endpoint adds, measured at the random checkpoint's bundle: the parts are the whole, whatever they take."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

for _library in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(_library)

from kontext.bench.serving import rest_front  # noqa: E402  # after the skips
from kontext.errors import KontextError  # noqa: E402
from kontext.runtime.server_client import Edit  # noqa: E402


def picture() -> bytes:
    file = io.BytesIO()
    Image.effect_mandelbrot((128, 128), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(file, "PNG")
    return file.getvalue()


def test_the_three_ways_and_the_parts(tiny_bundle: Path) -> None:
    results = rest_front.measure_front(tiny_bundle, Edit("make it red", [picture()], 4, seed=3), 2)
    small, large = results
    assert (small["size"], large["size"]) == ([128, 128], [1024, 1024])
    assert 0.9e6 < large["bytes"] < 1.5e6
    for each in results:
        assert set(each["seconds"]) == {rest_front.EDIT, rest_front.FILES, rest_front.REST}
        assert set(each["adds"]) == {rest_front.EDIT, rest_front.FILES}
        assert all(values["q1"] <= values["median"] <= values["q3"] for values in each["adds"].values())
        assert list(each["spans"]) == list(rest_front.SPANS)
        assert all(seconds > 0 for seconds in each["spans"].values())


def test_the_parts_are_the_whole_request() -> None:
    begins, ends = zip(*rest_front.SPANS.values(), strict=True)
    assert begins[1:] == ends[:-1]
    assert (begins[0], ends[-1]) == ("sent", "received")


def test_another_picture_is_an_error() -> None:
    answer = b'{"data": [{"b64_json": "%s"}]}' % rest_front.base64.b64encode(picture())
    expected = np.asarray(Image.open(io.BytesIO(picture()), formats=["PNG"]))
    rest_front.check_same(answer, expected)
    with pytest.raises(KontextError, match="the endpoint's picture is not the pipeline's"):
        rest_front.check_same(answer, 255 - expected)
