"""A real NVIDIA Triton Inference Server over a bundle: the pictures of the local runtime bit for bit, steps as they
are done, batches, many callers at once."""

from __future__ import annotations

import base64
import io
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext.bench.serving.local_server import LocalServer
from kontext.runtime import Pipeline, cli
from kontext.runtime.sent_pictures import picture_file
from kontext.runtime.server_client import Edit, connect

from ..conftest import until

QUEUE = [f'"max_queue" value {{ string_value: "{most}"' for most in (256, 1)]


def pixels(source: Image.Image | Path | bytes) -> np.ndarray[Any, Any]:
    if isinstance(source, Image.Image):
        return np.asarray(source)
    with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as picture:
        return np.asarray(picture)


def infer(server: Any, model: str, inputs: Sequence[tuple[str, str, list[int], bytes]]) -> Any:
    """A request in the server's binary format: the outputs by name, strings as bytes."""
    listed = [
        {"name": name, "datatype": dtype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
        for name, dtype, shape, data in inputs
    ]
    head = json.dumps({"inputs": listed, "parameters": {"base64": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    status, body = server.post(f"models/{model}/infer", head + b"".join(data for *_, data in inputs), headers)
    assert status == 200, body
    return {output["name"]: output["data"] for output in json.loads(body)["outputs"]}


def string(*values: bytes) -> bytes:
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)


def test_a_plain_request_is_the_local_edit(server: Any, local: Pipeline, pictures: list[Path]) -> None:
    files = [path.read_bytes() for path in pictures]
    outputs = infer(
        server,
        "kontext",
        [
            ("PROMPT", "BYTES", [1, 1], string(b"make it blue")),
            ("IMAGES", "BYTES", [1, 2], string(*files)),
            ("STEPS", "INT32", [1, 1], np.int32(3).tobytes()),
            ("GUIDANCE", "FP32", [1, 1], np.float32(3.5).tobytes()),
            ("SEED", "UINT64", [1, 1], np.uint64(7).tobytes()),
            ("SIZE", "INT32", [1, 2], np.array([96, 64], np.int32).tobytes()),
        ],
    )
    references = [Image.open(path) for path in pictures]
    expected = local.edit(references, "make it blue", steps=3, guidance=3.5, seed=7, size=(96, 64))
    assert np.array_equal(pixels(base64.b64decode(outputs["IMAGE"][0])), pixels(expected))


def test_json_is_enough(server: Any, local: Pipeline) -> None:
    body = {"PROMPT": "a red circle", "STEPS": 1}
    status, answer = server.post("models/kontext/generate", body)
    assert status == 200
    expected = local.edit(None, "a red circle", steps=1)
    file = base64.b64decode(json.loads(answer)["IMAGE"])
    assert np.array_equal(pixels(file), pixels(expected))
    with Image.open(io.BytesIO(file)) as picture:
        made = json.loads(picture.info["kontext"])
    assert made == expected.info["kontext"] | {"running": made["running"]}
    status, answer = server.post("models/kontext/generate", {**body, "metadata": False})
    assert b"a red circle" not in base64.b64decode(json.loads(answer)["IMAGE"])


def test_a_stream_shows_each_step_and_then_the_picture(
    server: Any, local: Pipeline, pictures: list[Path]
) -> None:
    seen: list[tuple[int, int]] = []
    previews: list[Image.Image] = []
    asked = Edit(
        "make it blue", [picture_file(pictures[1])], steps=4, seed=2**64 - 1, on_preview=previews.append
    )
    answer = connect(server.http).edit(asked, lambda step, total: seen.append((step, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [each.size for each in previews] == [tuple(side // 8 for side in answer.picture.size)] * 4
    expected = local.edit(Image.open(pictures[1]), "make it blue", steps=4, seed=2**64 - 1)
    assert np.array_equal(pixels(answer.picture), pixels(expected))


def test_grpc_gives_the_same(server: Any, local: Pipeline, pictures: list[Path], tmp_path: Path) -> None:
    expected = pixels(local.edit(Image.open(pictures[0]), "make it blue", steps=3, seed=5))
    streamed, unary = tmp_path / "streamed.png", tmp_path / "unary.png"
    told = server.call_grpc("edit", str(pictures[0]), "3", "5", str(streamed))
    assert told["seen"] == [[1, 3], [2, 3], [3, 3]]
    assert told["previews"] == [[side // 8 for side in expected.shape[1::-1]]] * 3
    assert np.array_equal(pixels(streamed), expected)
    assert server.call_grpc("unary", str(pictures[0]), "3", "5", str(unary))["id"] == "unary-grpc"
    assert np.array_equal(pixels(unary), expected)
    assert "edit id=unary-grpc outcome=ok" in server.log.read_text()


def test_grpc_repaints_too(server: Any, local: Pipeline, pictures: list[Path], tmp_path: Path) -> None:
    mask = Image.new("L", (128, 128))
    mask.paste(255, (0, 0, 64, 128))
    mask.save(tmp_path / "mask.png")
    server.call_grpc("repaint", str(pictures[0]), str(tmp_path / "mask.png"), str(tmp_path / "out.png"))
    options: dict[str, Any] = {"mask": mask, "strength": 0.7, "negative_prompt": "", "true_cfg": 2}
    expected = local.edit(Image.open(pictures[0]), "make it blue", steps=3, **options)
    assert np.array_equal(pixels(tmp_path / "out.png"), pixels(expected))


def test_the_command_with_a_server_is_the_command_with_a_bundle(
    server: Any,
    tiny_bundle: Path,
    pictures: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = [
        "-i",
        str(pictures[0]),
        "-p",
        "make it blue " * 20,
        "--steps",
        "2",
        "--seed",
        "3",
        "--num-images",
        "3",
    ]
    here, there = tmp_path / "here.png", tmp_path / "there.png"
    assert cli.main([str(tiny_bundle), *flags, "-o", str(here)]) == 0
    warned_here = sorted(capsys.readouterr().err.splitlines())
    assert cli.main(["--server", server.http, *flags, "-o", str(there)]) == 0
    assert sorted(capsys.readouterr().err.splitlines()) == warned_here
    for index in range(3):
        assert np.array_equal(pixels(tmp_path / f"here-{index}.png"), pixels(tmp_path / f"there-{index}.png"))


def test_repainting_with_a_negative_prompt_is_that_of_a_bundle(
    server: Any, front: Any, tiny_bundle: Path, pictures: list[Path], tmp_path: Path
) -> None:
    """Straight to the server and through its front, with everything that repaints and guides."""
    white = Image.new("LA", (50, 30))
    white.paste((0, 255), (0, 0, 30, 30))
    white.save(mask := tmp_path / "mask.tif")  # a format that the server does not read, with transparency
    flags = [
        "-i",
        str(pictures[0]),
        "--init-image",
        str(pictures[1]),
        "--mask",
        str(mask),
        "--mask-blur",
        "2",
    ]
    flags += [
        "--strength",
        "0.6",
        "--paste-back",
        "--negative-prompt",
        "",
        "--true-cfg",
        "3",
        "--cfg-until",
        "0.7",
    ]
    flags += ["-p", "make it blue", "--steps", "5", "--quiet"]
    outputs = [tmp_path / f"{name}.png" for name in ("here", "there", "front")]
    assert cli.main([str(tiny_bundle), *flags, "-o", str(outputs[0])]) == 0
    for url, output in zip((server.http, front.http), outputs[1:], strict=True):
        assert cli.main(["--server", url, *flags, "-o", str(output)]) == 0
        assert np.array_equal(pixels(output), pixels(outputs[0]))


def test_fifty_callers_at_once_each_get_their_picture(
    server: Any, local: Pipeline, pictures: list[Path]
) -> None:
    files = [[], [picture_file(pictures[0])], [picture_file(pictures[1])]]
    kinds = [
        Edit(f"make it {colour}", images, 1 + index % 2, seed=index)
        for index, (colour, images) in enumerate(
            (colour, images) for colour in ("blue", "red") for images in files
        )
    ]
    images = [None, Image.open(pictures[0]), Image.open(pictures[1])]
    expected = [
        pixels(local.edit(images[index % 3], kind.prompt, steps=kind.steps, seed=kind.seed))
        for index, kind in enumerate(kinds)
    ]
    client = connect(server.http)
    for _ in range(5):  # an idle machine may answer a first fifty one by one
        before = server.read_metrics(), server.outcomes("ok")
        with ThreadPoolExecutor(50) as callers:
            answers = list(callers.map(client.edit, [kinds[index % len(kinds)] for index in range(50)]))
        for index, answer in enumerate(answers):
            assert np.array_equal(pixels(answer.picture), expected[index % len(kinds)]), index
        until(lambda before=before: server.outcomes("ok") - before[1] >= 50)
        assert server.outcomes("ok") - before[1] == 50
        rows, batches = (
            server.read_metrics()[name] - before[0][name]
            for name in (f'kontext_batch_rows_{kind}{{model="kontext_stream"}}' for kind in ("sum", "count"))
        )
        assert rows == 50
        if batches < 50:
            break
    assert batches < 50  # some ran together, and their bits are none the worse
    metrics = server.read_metrics()
    for kind in ("prompt", "reference"):
        labels = f'{{kind="{kind}",model="kontext_stream"}}'
        assert metrics[f"kontext_embedding_cache_hits_total{labels}"] > 0
        assert metrics[f"kontext_embedding_cache_misses_total{labels}"] > 0
    assert metrics['kontext_embedding_cache_bytes{model="kontext_stream"}'] > 0


def test_the_servers_own_backend_runs_the_graphs(
    server: Any, local: Pipeline, tiny_bundle: Path, pictures: list[Path], tmp_path: Path
) -> None:
    """The layout for the server's ONNX Runtime backend. The wheel has none: the same library under the same name, as
    one of the server's backends in Python, takes its place, and the server checks the models' configurations."""
    from kontext.export.cli.main import main

    repository, bundle = tmp_path / "repository", shutil.copytree(tiny_bundle, tmp_path / "bundle")
    assert main([str(bundle), "--triton", str(repository), "--triton-backend", "onnxruntime", "--quiet"]) == 0
    config = repository / "models/kontext_stream/config.pbtxt"
    config.write_text(config.read_text().replace(*QUEUE))
    backends = tmp_path / "backends"
    (backends / "onnxruntime").mkdir(parents=True)
    (backends / "python").symlink_to(server.backends / "python")
    shutil.copy(Path(__file__).with_name("onnxruntime_backend.py"), backends / "onnxruntime" / "model.py")
    with LocalServer(repository / "models", log=tmp_path / "log", backends=backends) as second:
        asked = [Edit("make it blue", [picture_file(pictures[0])], 2), Edit("a circle", steps=2)]
        answers = [connect(second.http).edit(edit) for edit in asked]
        with ThreadPoolExecutor(12) as callers:
            statuses = list(callers.map(plain_status, [second.http] * 12))
    for answer, image, edit in zip(answers, [Image.open(pictures[0]), None], asked, strict=True):
        expected = local.edit(image, edit.prompt, steps=2)
        assert np.array_equal(pixels(answer.picture), pixels(expected))
    assert set(statuses) == {200, 503}  # the queue of one was full, and nobody was left without an answer


def plain_status(url: str) -> int:
    inputs = [
        {"name": "PROMPT", "datatype": "BYTES", "shape": [1, 1], "data": ["a circle"]},
        {"name": "STEPS", "datatype": "INT32", "shape": [1, 1], "data": [10]},
    ]
    body = json.dumps({"inputs": inputs, "parameters": {"base64": True}}).encode()
    try:
        with urllib.request.urlopen(f"{url}/v2/models/kontext/infer", body, timeout=300) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as fault:
        return fault.code
