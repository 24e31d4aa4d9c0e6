"""The same API before a real NVIDIA Triton Inference Server."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kontext.bench.serving.environment import is_ready
from kontext.bench.serving.local_server import LocalServer
from kontext.runtime import Pipeline

from .conftest import Served, form, png


def test_edits_reach_the_server_upstream(
    serve: Callable[..., Served], tiny_bundle: Path, rest_folder: Path, pipeline: Pipeline
) -> None:
    if not is_ready():
        pytest.skip("the server's environment is not there: `make server` makes build/server")
    from kontext.export.cli.main import main

    # Of a copy: the repository links to the bundle's files, and onnx refuses to read files with several links.
    bundle = shutil.copytree(tiny_bundle, rest_folder / "bundle")
    repository = rest_folder / "repository"
    assert main([str(bundle), "--triton", str(repository), "--quiet"]) == 0
    with LocalServer(repository / "models", log=rest_folder / "triton") as triton:
        rest = serve("--upstream", triton.http, bundle=False).ready()
        fields = {"prompt": "x", "steps": 2, "seed": 3, "n": 2, "progress": "true"}
        body, header = form(fields, [("image", png())])
        status, answer, _ = rest.send("POST", "/v1/images/edits", body, header)
        assert status == 200
        picture = Image.open(io.BytesIO(png()), formats=["PNG"])
        expected = pipeline.edit(picture, "x", steps=2, seed=3, num_images=2)
        assert isinstance(expected, list)
        for item, one in zip(answer["data"], expected, strict=True):
            file = io.BytesIO(base64.b64decode(item["b64_json"]))
            assert np.array_equal(Image.open(file, formats=["PNG"]), one)
        body, header = form({"prompt": "x", "steps": 1000}, [("image", png())])
        status, answer, _ = rest.send("POST", "/v1/images/edits", body, header)
        assert (status, answer["error"]["param"]) == (400, "steps")
        assert "steps may be at most 200 here" in answer["error"]["message"]

        cancelled = 'kontext_edits_total{model="kontext",outcome="cancelled"}'
        body, header = form({"prompt": "x", "steps": 200}, [("image", png())])
        connection = rest.connection()
        connection.request("POST", "/v1/images/edits", body, header)
        steps = rest.metric("kontext_steps_total")
        rest.until(lambda: rest.metric("kontext_steps_total") > steps)
        connection.close()
        rest.until(lambda: rest.metric(cancelled) == 1)


def test_a_server_that_is_not_there(serve: Callable[..., Served]) -> None:
    rest = serve("--upstream", "http://127.0.0.1:9", bundle=False)
    body, header = form({"prompt": "x"}, [("image", png())])
    status, answer, headers = rest.send("POST", "/v1/images/edits", body, header)
    assert (status, answer["error"]["code"], headers["retry-after"]) == (503, "unavailable", "5")
    assert "connection refused" in answer["error"]["message"]
    status, health, _ = rest.send("GET", "/health/ready")
    assert status == 503
    assert "connection refused" in health["problem"]
