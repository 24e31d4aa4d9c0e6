"""The API against OpenAI's own client and its own description: the pictures are the pipeline's, bit for bit."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops

from kontext.runtime import Pipeline

from .conftest import KEY, Served, form, png

openai = pytest.importorskip("openai")

EDIT = {"prompt": "make the red circle blue", "extra_body": {"steps": 2, "seed": 5}}


@pytest.fixture(scope="module")
def client(rest: Served) -> Any:
    return openai.OpenAI(base_url=f"{rest.url}/v1", api_key=KEY, max_retries=0)


def pixels(file: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(file), formats=["PNG", "JPEG", "WEBP"]) as picture:
        return np.asarray(picture.convert("RGB"))


def decoded(item: Any) -> np.ndarray:
    return pixels(base64.b64decode(item.b64_json))


def reference(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=["PNG"])


def named(data: bytes) -> tuple[str, bytes, str]:
    return "in.png", data, "image/png"


def test_an_edit_is_the_pipeline_s(client: Any, pipeline: Pipeline) -> None:
    data = png()
    answer = client.images.edit(image=named(data), **EDIT)
    (item,) = answer.data
    expected = pipeline.edit(reference(data), EDIT["prompt"], steps=2, seed=5)
    assert np.array_equal(decoded(item), expected)
    assert (answer.output_format, answer.size) == ("png", f"{expected.width}x{expected.height}")
    assert item.seed == 5


def test_several_files_and_pictures(client: Any, pipeline: Pipeline) -> None:
    files = [png(), png(32, 48)]
    answer = client.images.edit(image=[named(each) for each in files], n=2, size="64x96", **EDIT)
    expected = pipeline.edit(
        [reference(each) for each in files], EDIT["prompt"], steps=2, seed=5, size=(64, 96), num_images=2
    )
    assert isinstance(expected, list)
    assert [item.seed for item in answer.data] == [5, 6]
    assert all(np.array_equal(decoded(item), one) for item, one in zip(answer.data, expected, strict=True))


def test_masks_have_holes(client: Any, pipeline: Pipeline) -> None:
    """What is transparent is repainted, as OpenAI documents it; of a mask without transparency, what is white."""
    data, white = png(), Image.new("L", (48, 32))
    white.paste(255, (0, 0, 24, 32))
    holes = reference(data).convert("RGBA")
    holes.putalpha(ImageChops.invert(white))
    expected = pipeline.edit(reference(data), EDIT["prompt"], steps=2, seed=5, mask=white)
    assert not np.array_equal(expected, pipeline.edit(reference(data), EDIT["prompt"], steps=2, seed=5))
    for mask in (holes, white):
        file = io.BytesIO()
        mask.save(file, "PNG")
        answer = client.images.edit(image=named(data), mask=named(file.getvalue()), **EDIT)
        assert np.array_equal(decoded(answer.data[0]), expected)
    options = {"strength": 0.5, "negative_prompt": "blue", "true_cfg": 2.0}
    answer = client.images.edit(image=named(data), prompt="x", extra_body={"steps": 4, **options})
    expected = pipeline.edit(reference(data), "x", steps=4, **options)
    assert np.array_equal(decoded(answer.data[0]), expected)


def test_generations_and_models(client: Any, pipeline: Pipeline) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id == pipeline.bundle.name
    answer = client.images.generate(model=model.id, **EDIT)
    expected = pipeline.edit(None, EDIT["prompt"], steps=2, seed=5)
    assert np.array_equal(decoded(answer.data[0]), expected)
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-image-1' here"):
        client.images.generate(model="gpt-image-1", **EDIT)


def test_streams(client: Any, rest: Served, pipeline: Pipeline) -> None:
    data = png()
    expected = pipeline.edit(reference(data), EDIT["prompt"], steps=2, seed=5)
    (done,) = list(client.images.edit(image=named(data), stream=True, **EDIT))
    assert done.type == "image_edit.completed"
    assert np.array_equal(decoded(done), expected)
    (drawn,) = list(client.images.generate(stream=True, **EDIT))
    assert drawn.type == "image_generation.completed"
    with pytest.raises(openai.APIError, match="size 60x64: both sides must be multiples of 16"):
        list(client.images.edit(image=named(data), stream=True, size="60x64", **EDIT))
    body, header = form({"prompt": "x", "steps": 3, "stream": "true", "progress": "true"}, [("image", data)])
    status, text, _ = rest.send("POST", "/v1/images/edits", body, header)
    events = [json.loads(line[6:]) for line in text.decode().splitlines() if line.startswith("data: ")]
    assert status == 200
    assert [each["type"] for each in events] == [*["kontext.progress"] * 3, "image_edit.completed"]
    assert [each["step"] for each in events[:3]] == [1, 2, 3]


def test_partial_images(client: Any, pipeline: Pipeline) -> None:
    """They are the pipeline's previews, of steps that are spread over the edit."""
    data, expected = png(), []
    pipeline.edit(reference(data), "x", steps=8, callback=lambda *_: expected.append(pipeline.previews()[0]))
    extra = {"steps": 8}
    events = list(
        client.images.edit(image=named(data), prompt="x", stream=True, partial_images=3, extra_body=extra)
    )
    assert [each.type for each in events] == [*["image_edit.partial_image"] * 3, "image_edit.completed"]
    assert [each.partial_image_index for each in events[:3]] == [0, 1, 2]
    for event, step in zip(events, (2, 4, 6), strict=False):
        assert np.array_equal(decoded(event), expected[step - 1])


def test_formats_and_links(client: Any, rest: Served) -> None:
    for kind, magic in (("jpeg", b"\xff\xd8"), ("webp", b"RIFF"), ("png", b"\x89PNG")):
        answer = client.images.edit(image=named(png()), output_format=kind, response_format="url", **EDIT)
        path = answer.data[0].url.removeprefix(rest.url)
        status, file, headers = rest.send("GET", path)
        assert (status, headers["content-type"]) == (200, f"image/{kind}")
        assert file.startswith(magic)
        assert b"make the red circle blue" in file
        bare = client.images.edit(
            image=named(png()),
            prompt=EDIT["prompt"],
            output_format=kind,
            extra_body={"steps": 1, "metadata": False},
        )
        assert b"make the red circle blue" not in base64.b64decode(bare.data[0].b64_json)
    assert rest.send("GET", "/pictures/unknown.png")[0] == 404


BAD: list[tuple[dict[str, Any], list[tuple[str, bytes]], str | None, str]] = [
    ({}, [("image", png())], "prompt", "prompt is missing"),
    ({"prompt": ""}, [("image", png())], "prompt", "at least 1 character"),
    ({"prompt": "x" * 20000}, [("image", png())], "prompt", "at most 16384 characters"),
    ({"prompt": "x"}, [], "image", "image is missing"),
    ({"prompt": "x", "image": "text"}, [], "image", "image must be a file"),
    ({"prompt": "x"}, [("image", b"GIF89a")], "image", "neither a PNG, JPEG or WebP file nor base64"),
    ({"prompt": "x"}, [("image", png()[:60])], "image", "cannot be read as a picture"),
    ({"prompt": "x"}, [("picture", png())], "picture", "'picture' is no field for a file"),
    ({"prompt": "x"}, [("image", png())] * 9, "image", "at most 8 are taken here"),
    ({"prompt": "x", "n": 0}, [("image", png())], "n", "greater than or equal to 1"),
    ({"prompt": "x", "n": 11}, [("image", png())], "n", "less than or equal to 10"),
    ({"prompt": "x", "n": "two"}, [("image", png())], "n", "valid integer"),
    ({"prompt": "x", "steps": 201}, [("image", png())], "steps", "steps may be at most 200 here"),
    ({"prompt": "x", "size": "big"}, [("image", png())], "size", "size must be WIDTHxHEIGHT"),
    ({"prompt": "x", "size": "60x64"}, [("image", png())], None, "multiples of 16"),
    ({"prompt": "x", "guidance": "nan"}, [("image", png())], "guidance", "finite number"),
    ({"prompt": "x", "seed": -1}, [("image", png())], "seed", "greater than or equal to 0"),
    ({"prompt": "x", "seed": 2**64 - 1, "n": 2}, [("image", png())], None, "a seed is a whole number"),
    ({"prompt": "x", "response_format": "gif"}, [("image", png())], "response_format", "'b64_json' or 'url'"),
    ({"prompt": "x", "output_compression": 5}, [("image", png())], "output_compression", "PNG loses"),
    ({"prompt": "x", "partial_images": 2}, [("image", png())], "partial_images", "need stream=true"),
    ({"prompt": "x", "background": "transparent"}, [("image", png())], "background", "'auto' or 'opaque'"),
    ({"prompt": "x", "reference_method": "side"}, [("image", png())], None, "index, offset or stitch"),
    ({"prompt": "x", "reference_size": "side"}, [("image", png())], None, "the reference size must be"),
    ({"prompt": "x"}, [("image", png()), ("mask", b"GIF89a")], "mask", "mask is a GIF picture"),
    ({"prompt": "x"}, [("image", png()), *[("mask", png())] * 2], "mask", "mask is given twice"),
    ({"prompt": "x", "strength": 2}, [("image", png())], None, "strength must be"),
    ({"prompt": "x", "true_cfg": "inf"}, [("image", png())], "true_cfg", "finite number"),
    ({"prompt": "x", "colour": "red"}, [("image", png())], "colour", "'colour' is no field of this request"),
]


@pytest.mark.parametrize(("fields", "files", "param", "words"), BAD, ids=lambda case: str(case)[:40])
def test_bad_fields_are_said(
    rest: Served, fields: dict[str, Any], files: list[tuple[str, bytes]], param: str | None, words: str
) -> None:
    body, header = form(fields, files)
    status, answer, _ = rest.send("POST", "/v1/images/edits", body, header)
    error = answer["error"]
    assert status == 400
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]
    assert error["param"] == param
    assert "\n" not in error["message"]


def test_bodies_that_are_none(rest: Served) -> None:
    def code(path: str, body: bytes, kind: str) -> tuple[int, str]:
        status, answer, _ = rest.send("POST", f"/v1/images/{path}", body, {"Content-Type": kind})
        return status, answer["error"]["code"]

    assert code("edits", b"{}", "application/json") == (415, "unsupported_media_type")
    assert code("edits", b"x", "multipart/form-data") == (400, "invalid_form")
    assert code("edits", b"x", "multipart/form-data; boundary=b")[0] == 400
    twice = form({"prompt": "x"})[0].replace(b"--frontier--\r\n", b"") + form({"prompt": "y"})[0]
    assert code("edits", twice, "multipart/form-data; boundary=frontier") == (400, "invalid_value")
    assert code("generations", b"{", "application/json") == (400, "invalid_json")
    assert code("generations", b"[]", "application/json") == (400, "invalid_json")
    assert code("generations", b"[" * 200_000, "application/json") == (400, "invalid_json")
    assert code("generations", b'{"prompt": "x", "n": "2"}', "application/json") == (400, "invalid_value")
    assert code("generations", b'{"prompt": "x"}', "text/plain") == (415, "unsupported_media_type")
    assert rest.send("GET", "/v1/images/edits")[0] == 405
    assert rest.send("GET", "/v2")[1]["error"]["code"] == "not_found"


def test_metrics_count_edits(client: Any, rest: Served) -> None:
    before = rest.metric("kontext_edits_total"), rest.metric("kontext_steps_total")
    client.images.generate(n=2, **EDIT)
    assert rest.metric("kontext_edits_total") == before[0] + 2
    assert rest.metric("kontext_steps_total") == before[1] + 4
    assert rest.metric("kontext_queue_length") == 0


def test_a_caller_who_leaves_stops_the_edit(rest: Served) -> None:
    cancelled = 'kontext_edits_total{model="kontext-random",outcome="cancelled"}'
    for stream in ("false", "true"):
        before = rest.metric(cancelled)
        body, header = form({"prompt": "x", "steps": 200, "stream": stream}, [("image", png())])
        connection = rest.connection()
        connection.request("POST", "/v1/images/edits", body, header)
        steps = rest.metric("kontext_steps_total")
        rest.until(lambda steps=steps: rest.metric("kontext_steps_total") > steps)
        connection.close()
        rest.until(lambda before=before: rest.metric(cancelled) == before + 1)


def test_a_full_queue_sends_callers_away(serve: Callable[..., Served]) -> None:
    """20 callers at a time, of whom 4 may wait: every other one is told when to come again."""
    full = serve("--limit", "max_queue=4").ready()
    statuses: list[int] = []
    body, header = form({"prompt": "x", "steps": 60}, [("image", png())])
    held = full.connection()
    held.request("POST", "/v1/images/edits", body, header)
    full.until(lambda: full.metric("kontext_steps_total") > 1)

    def call() -> None:
        for _ in range(10):
            body, header = form({"prompt": "x", "steps": 1}, [("image", png())])
            status, _, headers = full.send("POST", "/v1/images/edits", body, header)
            assert status == 200 or headers["retry-after"] == "5"
            statuses.append(status)

    threads = [threading.Thread(target=call) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held.getresponse().status == 200
    assert len(statuses) == 200
    assert set(statuses) == {200, 429}
    assert full.metric("kontext_queue_length") == 0


def test_an_edit_does_not_wait_for_ever(serve: Callable[..., Served]) -> None:
    hasty = serve("--max-wait", "0.2").ready()
    body, header = form({"prompt": "x", "steps": 200, "seed": 1}, [("image", png())])
    held = [hasty.connection() for _ in range(5)]  # of 5 kinds, so that they take all places
    for number, connection in enumerate(held):
        body, header = form({"prompt": "x", "steps": 200 - number}, [("image", png())])
        connection.request("POST", "/v1/images/edits", body, header)
    hasty.until(lambda: 'status="429"' in hasty.send("GET", "/metrics")[1].decode())
    for connection in held:
        connection.close()
