"""Workers of Ray: a real cluster of two on this machine, of which one is killed, and addresses where no Ray is."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kontext.batch import cli
from kontext.batch.journal import RESULTS
from kontext.batch.ray_cluster import GPU_DEVICES, connected
from kontext.errors import KontextError
from kontext.runtime import Pipeline

from .test_cli import until, whole, write_jobs

ROOT = Path(__file__).resolve().parents[2]
JOBS = 14


def descendants(process: int) -> dict[int, str]:
    """Process id → command line of a process's children and theirs."""
    parents: dict[int, int] = {}
    lines: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            lines[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if fields[0] != "Z":
                parents[int(folder.name)] = int(fields[1])
        except OSError:  # it has ended
            continue

    def below(each: int) -> bool:
        while each in parents and each != process:
            each = parents[each]
        return each == process

    return {each: lines[each] for each in parents if each != process and below(each)}


def test_a_killed_worker_s_jobs_are_done_by_another(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 255, (128, 128, 3), np.uint8)).save(tmp_path / "a.png")
    rows: list[dict[str, Any]] = [
        {"id": f"{n}", "image": "a.png", "prompt": "make it blue", "seed": n, "steps": 8} for n in range(JOBS)
    ]
    rows.append({"id": "gone", "image": "gone.png", "prompt": "x"})
    out = tmp_path / "out"
    words = [str(tiny_bundle), write_jobs(tmp_path, rows), "-o", str(out), "--ray", "local", "--workers", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "kontext.batch.cli", *words], text=True, stderr=subprocess.PIPE, cwd=tmp_path
    ) as process:
        until(lambda: (out / RESULTS).exists() and len(whole(out)) >= 3)
        children = descendants(process.pid)
        workers = [each for each, line in children.items() if line.startswith("ray::Worker")]
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert said.startswith("failed: line 15 (gone): ")
    lines = whole(out)
    assert sorted(line["id"] for line in lines) == sorted(row["id"] for row in rows)
    assert [line["id"] for line in lines if line["error"] is not None] == ["gone"]
    pipe = Pipeline.load(tiny_bundle, device="cpu")
    for number in (0, JOBS - 1):
        with Image.open(tmp_path / "a.png") as reference, Image.open(out / f"{number}.png") as made:
            expected = pipe.edit(reference, "make it blue", seed=number, steps=8)
            assert np.array_equal(np.asarray(made), np.asarray(expected))
    until(lambda: not any(Path(f"/proc/{each}").exists() for each in children))  # no process is left behind


@pytest.mark.parametrize("address", ["127.0.0.1", "ray://127.0.0.1:10001", "a:b", "127.0.0.1:99999", ":6379"])
def test_addresses_that_are_none(address: str) -> None:
    assert "--ray takes local, auto or HOST:PORT" in refused(address)


def test_addresses_where_no_ray_is() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        assert f"no Ray answers at {address}: Connection refused" in refused(address)
    assert "no Ray answers at host.invalid:6379: " in refused("host.invalid:6379")
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        assert f"no Ray answers at {address}: something else does" in refused(address)
        server.shutdown()


def refused(address: str) -> str:
    """The line that is said of an address."""
    pytest.importorskip("ray", reason="ray is not installed")
    with pytest.raises(KontextError) as error:
        connected(address)
    return str(error.value)


def test_the_manifest_for_kuberay_holds_together() -> None:
    """Beside the validation against KubeRay's schema, which is too large for this repository (docs/batch.md)."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    job = yaml.safe_load((ROOT / "examples" / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    program, *words = job["spec"]["entrypoint"].split()
    arguments = cli.parser().parse_args(words)
    assert program == "kontext-batch"
    cluster = job["spec"]["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert group["minReplicas"] == 0 < arguments.workers == group["maxReplicas"]
    pods = [group["template"]["spec"], cluster["headGroupSpec"]["template"]["spec"]]
    for pod in pods:
        (container,) = pod["containers"]
        assert [each["name"] for each in container["volumeMounts"]] == [
            each["name"] for each in pod["volumes"]
        ]
        for path in (arguments.bundle, arguments.jobs, arguments.output):
            assert any(path.is_relative_to(each["mountPath"]) for each in container["volumeMounts"])
    images = {pod["containers"][0]["image"] for pod in pods}
    assert len(images) == 1
    limits = pods[0]["containers"][0]["resources"]
    assert limits["limits"] == limits["requests"]
    assert limits["limits"]["nvidia.com/gpu"] == "1"
    assert arguments.device in GPU_DEVICES  # no GPU is there yet when the command looks


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers", "2"], "--workers needs --ray"),
        (["--cpus-per-worker", "2"], "--cpus-per-worker needs --ray"),
        (["--ray", "local", "--workers", "0"], "--workers must be 1 or more"),
    ],
)
def test_flags_that_do_not_fit(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "jobs.jsonl").write_text(json.dumps({"prompt": "x"}))
    words = ["bundle", str(tmp_path / "jobs.jsonl"), "-o", str(tmp_path / "out"), *flags]
    assert cli.main(words) == 2
    assert message in capsys.readouterr().err
