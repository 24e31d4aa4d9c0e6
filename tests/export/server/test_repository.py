"""A bundle as a model repository: its files, what it does not replace, and that it appears whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from kontext.errors import KontextError
from kontext.export.cli.main import main
from kontext.export.cli.source_flags import EMBEDDED
from kontext.export.server import repository as triton_repository
from kontext.export.server.repository import Settings, write_repository
from kontext.runtime.bundle import Bundle
from kontext.runtime.server import contract
from kontext.runtime.server.desk import default_batch

onnx = pytest.importorskip("onnx")
yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def tiny_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: repositories link to the bundle's files, and onnx refuses to read files with several links."""
    return Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("copy") / tiny_bundle.name))


@pytest.fixture
def repository(tiny_bundle: Path, tmp_path: Path) -> Path:
    return write_repository(tiny_bundle, tmp_path / "repository", Settings())


def test_the_command_writes_it(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "repository"
    assert (
        main(
            [
                *(
                    str(tiny_bundle),
                    "--triton",
                    str(output),
                    "--triton-batch",
                    "3",
                    "--triton-instances",
                    "2",
                ),
                *("--triton-limit", "max_steps=50", "--triton-limit", "max_references=2"),
            ]
        )
        == 0
    )
    assert capsys.readouterr().out == f"wrote {output}; its README.md says how to start it\n"
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]
    config = (output / "models/kontext_stream/config.pbtxt").read_text()
    assert "max_batch_size: 3\n" in config
    assert "count: 2 kind: KIND_AUTO" in config
    assert "decoupled: true" in config
    assert 'key: "max_steps" value { string_value: "50" }' in config
    assert "most = 2," in (output / "front/contract.lua").read_text()
    assert sorted(path.name for path in (output / "models").iterdir()) == ["kontext", "kontext_stream"]


@pytest.mark.usefixtures("fast_trace")
def test_a_checkpoint_becomes_a_bundle_and_a_repository(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, output = tmp_path / "bundle", tmp_path / "repository"
    words = [str(tiny_checkpoint), "-o", str(bundle), "--triton", str(output), "--quiet"]
    output.mkdir()
    (output / "file").write_text("mine")
    assert main(words) == 2
    assert "is not a model repository" in capsys.readouterr().err
    assert not bundle.exists()  # said before the work, not after it
    (output / "file").unlink()
    output.rmdir()
    assert main(words) == 0
    copy = Bundle.open(output / "models/kontext_stream/1/bundle")
    assert copy.manifest == Bundle.open(bundle).manifest


def test_the_bundle_in_it_is_the_bundle(repository: Path, tiny_bundle: Path) -> None:
    copy = Bundle.open(repository / "models/kontext_stream/1/bundle")
    copy.verify()
    assert copy.manifest == Bundle.open(tiny_bundle).manifest


def test_files_are_shared_where_the_disk_allows(repository: Path, tiny_bundle: Path) -> None:
    name = "weights/transformer.safetensors"
    assert os.path.samefile(tiny_bundle / name, repository / "models/kontext_stream/1/bundle" / name)


def test_files_are_copied_where_it_does_not(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(triton_repository.os, "link", refuse)
    output = write_repository(tiny_bundle, tmp_path / "repository", Settings())
    Bundle.open(output / "models/kontext_stream/1/bundle").verify()


def test_the_runtime_in_it_needs_nothing_else(repository: Path) -> None:
    """The copy is complete: an edit and the command line run without this repository's package."""
    code = (
        "import sys, kontext.runtime.server.jobs; from kontext.runtime.cli import main; print(kontext.__file__)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    bundle = repository / "models" / "kontext_stream" / "1" / "bundle"
    words = [str(bundle), "-p", "make it blue", "--steps", "1", "-o", str(repository / "out.png"), "--quiet"]
    for model in ("kontext", "kontext_stream"):
        folder = repository / "models" / model / "1"
        environment = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout.strip() == str(folder / "kontext/__init__.py"), done.stderr


def test_the_warm_up_is_one_step_with_a_picture(repository: Path) -> None:
    warmup = repository / "models/kontext_stream/warmup"
    assert struct.unpack("<i", (warmup / "STEPS").read_bytes()) == (1,)
    for name, start in (("PROMPT", b"warm up"), ("IMAGES", b"\x89PNG")):
        data = (warmup / name).read_bytes()
        assert struct.unpack_from("<I", data)[0] == len(data) - 4
        assert data[4:].startswith(start)


def test_graphs_as_models_of_the_server(tiny_bundle: Path, tmp_path: Path) -> None:
    output = write_repository(tiny_bundle, tmp_path / "repository", Settings(backend="onnxruntime"))
    models = output / "models"
    config = (models / "kontext_transformer/config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in config
    assert '{ name: "target" data_type: TYPE_FP32 dims: [ -1, -1, 64 ] }' in config
    assert (
        '{ name: "input_ids" data_type: TYPE_INT64'
        in (models / "kontext_text_encoder/config.pbtxt").read_text()
    )
    for name in Bundle.open(tiny_bundle).graphs:
        assert (models / f"kontext_{name}/1/model.onnx").is_file()
        assert (models / f"kontext_{name}/1/weights/{name}.safetensors").is_file()
    assert (
        'key: "graphs" value { string_value: "server" }'
        in (models / "kontext_stream/config.pbtxt").read_text()
    )


def test_filters_are_the_users(tiny_bundle: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def input_filter(references, prompt): ...\ndef output_filter(picture): return picture\n")
    output = write_repository(tiny_bundle, tmp_path / "repository", Settings(filters=mine))
    assert (output / "models/kontext_stream/1/filters.py").read_text() == mine.read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ("def input_filter(:", "is not Python"),
        ("def input_filter(references, prompt): ...", "defines no output_filter"),
        ("x = 1", "defines no input_filter and no output_filter"),
    ],
)
def test_filters_that_are_none(tiny_bundle: Path, tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "filters.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(KontextError, match=message):
        write_repository(tiny_bundle, tmp_path / "repository", Settings(filters=path))
    assert not (tmp_path / "repository").exists()


def test_filters_that_would_block(tiny_bundle: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "filters.py")
    with pytest.raises(KontextError, match="is not a regular file"):
        write_repository(tiny_bundle, tmp_path / "repository", Settings(filters=tmp_path / "filters.py"))


def test_pictures_share_a_batch_where_it_does_not_change_them(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert default_batch(bundle) == 8
    large = dataclasses.replace(bundle.sampler, preferred_sizes=((1024, 1024),))
    assert default_batch(dataclasses.replace(bundle, sampler=large)) == 1
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])], "g", [], []
    )
    data = helper.make_model(graph).SerializeToString()
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (folder / "transformer.onnx").write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["files"]["transformer.onnx"] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert default_batch(Bundle.open(folder)) == 1


# -- existing files --


def test_a_repository_is_replaced_with_force_only(repository: Path, tiny_bundle: Path) -> None:
    with pytest.raises(KontextError, match="give --force"):
        write_repository(tiny_bundle, repository, Settings())
    cache = repository / "models/kontext/1/__pycache__"
    cache.mkdir()
    (cache / "model.cpython-311.pyc").write_bytes(b"")  # the server's Python leaves such files
    write_repository(tiny_bundle, repository, Settings(batch=5), force=True)
    assert "max_batch_size: 5" in (repository / "models/kontext_stream/config.pbtxt").read_text()
    assert not cache.exists()
    assert [path.name for path in repository.parent.iterdir()] == ["repository"]


def test_files_of_others_are_never_deleted(repository: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    (repository / "models/notes.txt").write_text("mine")
    with pytest.raises(KontextError, match=r"notes\.txt is not part of the repository"):
        write_repository(tiny_bundle, repository, Settings(), force=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("mine")
    with pytest.raises(KontextError, match="is not a model repository"):
        write_repository(tiny_bundle, other, Settings(), force=True)
    with pytest.raises(KontextError, match="is not a folder"):
        write_repository(tiny_bundle, other / "file", Settings(), force=True)
    with pytest.raises(KontextError, match="make it first"):
        write_repository(tiny_bundle, tmp_path / "nowhere/repository", Settings())


def test_what_a_killed_export_left_is_cleared(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "repository"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(triton_repository, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            write_repository(tiny_bundle, output, Settings())
    assert not output.exists()
    assert (tmp_path / "repository.partial").is_dir()
    write_repository(tiny_bundle, output, Settings())
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_a_partial_folder_of_somebody_else(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "repository.partial").mkdir()
    (tmp_path / "repository.partial/file").write_text("mine")
    with pytest.raises(KontextError, match="is in the way"):
        write_repository(tiny_bundle, tmp_path / "repository", Settings())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([str(EMBEDDED), "--triton", "repository"], "is not a bundle: add -o OUT to export a checkpoint"),
        (["nowhere", "--triton", "repository"], "nowhere does not exist"),
        ([".", "--triton", "repository", "--triton-limit", "max_stps=5"], "NAME must be one of max_steps, "),
        (
            [".", "--triton", "repository", "--triton-limit", "max_steps=0"],
            "N must be a whole number from 1 to",
        ),
        ([".", "-o", "bundle", "--triton-limit", "max_steps=5"], "--triton-limit"),
        ([".", "--triton", "repository"], "is not a bundle"),
    ],
)
def test_what_can_go_wrong_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_over_other_files_is_refused(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_bundle)
    object.__setattr__(bundle, "links", {"links/a": object()})
    monkeypatch.setattr(Bundle, "open", lambda folder: bundle)
    with pytest.raises(KontextError, match="export it without --link-weights"):
        write_repository(tiny_bundle, tmp_path / "repository", Settings())


# -- the files beside the models --


def test_the_documents_have_no_gaps(repository: Path) -> None:
    for name in (
        "README.md",
        "Dockerfile",
        "compose.yaml",
        "kubernetes.yaml",
        "requirements-onnxruntime.txt",
    ):
        assert "$stream" not in (text := (repository / name).read_text())
        assert "$$" not in text
    assert "kontext-random" in (repository / "README.md").read_text()


def test_the_manifest_of_the_cluster(repository: Path) -> None:
    documents = {
        each["kind"]: each for each in yaml.safe_load_all((repository / "kubernetes.yaml").read_text())
    }
    deployment = documents["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels == documents["Service"]["spec"]["selector"]
    scaler = documents["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == documents["Deployment"]["metadata"]["name"]
    metric = scaler["metrics"][0]["pods"]["metric"]["name"]
    (rule,) = yaml.safe_load(documents["ConfigMap"]["data"]["config.yaml"])["rules"]
    assert rule["name"]["as"] == metric
    assert f'kontext_queue_length{{model="{contract.STREAM}"}}' == rule["seriesQuery"]
    container = deployment["template"]["spec"]["containers"][0]
    ports = {port["name"] for port in container["ports"]}
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert [probe["path"] for probe in probes] == ["/ready", "/ready", "/live"]
    assert {probe["port"] for probe in probes} <= ports
    (front,) = deployment["template"]["spec"]["initContainers"]
    ports = {port["name"] for port in front["ports"]}
    assert {port["targetPort"] for port in documents["Service"]["spec"]["ports"]} == ports == {"front"}
    volumes = {volume["name"] for volume in deployment["template"]["spec"]["volumes"]}
    assert {mount["name"] for each in (front, container) for mount in each["volumeMounts"]} == volumes


def test_callers_reach_the_front_only(repository: Path) -> None:
    documents = {
        each["kind"]: each for each in yaml.safe_load_all((repository / "kubernetes.yaml").read_text())
    }
    command = documents["Deployment"]["spec"]["template"]["spec"]["containers"][0]["command"]
    text = (repository / "Dockerfile").read_text().replace("\\\n", "")
    image = json.loads(text.partition("CMD ")[2])
    assert [word for word in command if word != "--http-address=127.0.0.1"] == image
    assert {"--http-address=127.0.0.1", "--grpc-address=127.0.0.1"} <= set(command)
    open_ports = [
        port["port"] for rule in documents["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]
    ]
    assert open_ports == ["front", "metrics"]
    compose = yaml.safe_load((repository / "compose.yaml").read_text())
    assert "ports" not in compose["services"]["kontext"]
    assert compose["networks"][compose["services"]["kontext"]["networks"][0]] == {"internal": True}


def test_the_image_starts_the_supervisor(repository: Path) -> None:
    """And probes ask it: the server alone says that it is ready when a model's process is dead."""
    text = (repository / "Dockerfile").read_text().replace("\\\n", "")
    command = json.loads(text.partition("CMD ")[2])
    assert (repository / command[2].removeprefix("/")).is_file()
    done = subprocess.run(
        [sys.executable, "-I", repository / command[2].removeprefix("/"), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "where /ready and /live are served" in done.stdout
    assert "8003/ready" in (repository / "compose.yaml").read_text()


def test_the_compose_file(repository: Path) -> None:
    services = yaml.safe_load((repository / "compose.yaml").read_text())["services"]
    service, front = services["kontext"], services["front"]
    assert service["build"]["context"] == "."
    assert (repository / front["build"] / "Dockerfile").is_file()
    start = (repository / "front/start.sh").read_text()
    assert all(f"${{{name}:-" in start for name in front["environment"])
    assert f"ARG {next(iter(service['build']['args']))}=" in (repository / "Dockerfile").read_text()
    assert all(port.startswith("127.0.0.1:") for port in front["ports"])


def test_requirements_are_the_packages(repository: Path) -> None:
    """Those of pyproject.toml but for what only command lines need (shell completion and configuration), with numpy
    below 2 and ONNX Runtime left to the Dockerfile."""
    dependencies = re.search(
        r"^dependencies = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL | re.MULTILINE
    )
    assert dependencies is not None
    wanted = {
        line
        for line in re.findall(r'"([^"]+)"', dependencies[1])
        if not line.startswith(("onnxruntime", "shtab", "tomli"))
    }
    lines = {line for line in (repository / "requirements.txt").read_text().splitlines() if line[:1] != "#"}
    assert lines == {f"{line},<2" if line.startswith("numpy") else line for line in wanted}


@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime-gpu"])
def test_the_image_has_locked_packages(repository: Path, runtime: str) -> None:
    """Each requirement is pinned within its range, with hashes, also in those of the Dockerfile's RUNTIME."""
    docker = (repository / "Dockerfile").read_text()
    assert "--require-hashes -r /opt/kontext/requirements-${RUNTIME}.txt" in docker
    lock = (repository / f"requirements-{runtime}.txt").read_text()
    pins = dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)(?: ; .*)? \\\n    --hash=sha256:", lock, re.MULTILINE))
    assert len(pins) == len(re.findall(r"^[a-z]", lock, re.MULTILINE))
    wanted = [
        Requirement(line)
        for line in (repository / "requirements.txt").read_text().splitlines()
        if line[0] != "#"
    ]
    for requirement in [*wanted, Requirement(runtime)]:
        assert pins[requirement.name] in requirement.specifier
    tested = dict(
        re.findall(r"^([\w.-]+)==(.+)$", (ROOT / "constraints-serve.txt").read_text(), re.MULTILINE)
    )
    assert all(tested.get(name, version) == version for name, version in pins.items())


def test_the_documented_contract_is_the_contract() -> None:
    text = (ROOT / "docs/serving.md").read_text()
    table = text.partition("<!-- contract:begin -->\n")[2].partition("<!-- contract:end -->")[0]
    for tensor in contract.INPUTS:
        shape = [1, *tensor.shape]
        optional = "optional; " if tensor.optional else ""
        assert f"| `{tensor.name}` | {tensor.datatype} | {shape} | {optional}{tensor.meaning} |" in table
    unary = {tensor.name for tensor in contract.OUTPUTS[contract.UNARY]}
    for tensor in contract.OUTPUTS[contract.STREAM]:
        of = "both" if tensor.name in unary else f"`{contract.STREAM}`"
        assert (
            f"| `{tensor.name}` | {of} | {tensor.datatype} | {[1, *tensor.shape]} | {tensor.meaning} |"
            in table
        )
    for name, value in vars(contract.Limits()).items():
        assert f"`{name}` {value}" in " ".join(text.split())


def test_the_marker_lists_every_file(repository: Path) -> None:
    files = {path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()}
    assert set(json.loads((repository / "repository.json").read_text())["files"]) == files
