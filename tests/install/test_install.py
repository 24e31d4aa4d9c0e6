"""The built distributions in fresh environments: what each extra brings, what every faulty installation is told, both
ends of the supported versions. `make test-install` runs it; it downloads gigabytes."""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .environments import CONSTRAINTS, MINORS, ROOT, Environment, lower_bounds, normalized, pythons

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has none")

pytestmark = pytest.mark.install

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REQUIREMENTS = PROJECT["project"]["dependencies"]
EXTRAS = PROJECT["project"]["optional-dependencies"]
PICTURE = ROOT / "examples" / "pictures" / "recolour.png"
EDIT = ("-i", PICTURE, "--prompt", "turn the purple triangle pink", "--steps", 4, "-o", "out.png", "--quiet")

Fresh = Callable[..., Environment]


def edit(environment: Environment, bundle: Path, *words: object) -> np.ndarray:
    """The picture of an edit in the environment, as numbers."""
    environment.succeed("kontext-edit", bundle, *EDIT, *words)
    with Image.open(environment.scratch / "out.png") as picture:
        return np.asarray(picture.convert("RGB")).astype(float)


def decibels(picture: np.ndarray, reference: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((picture - reference) ** 2), 1e-9)))


@pytest.fixture(scope="session")
def picture(exporting: Environment, bundle: Path) -> np.ndarray:
    """The edit with the versions of constraints.txt."""
    return edit(exporting, bundle)


# -- the distributions --


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_packages_whole(wheel: Path, clone: Path) -> None:
    """Every file of their folders but the C++ runtime's sources and recorded measurements, and no others."""
    folders = {
        package.split(".")[1] for package in PROJECT["tool"]["setuptools"]["packages"] if "." in package
    }
    apart = ("runtime/cpp/", "bench/results/")
    expected = {
        f"kontext/{name}"
        for path in clone.rglob("*")
        if path.is_file() and (name := path.relative_to(clone).as_posix()).split("/")[0] in folders
        if not name.startswith(apart)
    }
    expected |= {f"kontext/{path.name}" for path in clone.glob("*.py")}
    expected |= {"kontext/py.typed", "kontext/constraints-serve.txt"}
    held = {name for name in contents(wheel) if not name.partition("/")[0].endswith(".dist-info")}
    assert held == expected
    assert any(name.endswith("licenses/LICENSE") for name in contents(wheel))


def test_the_source_distribution_builds_the_same_wheel(sdist: Path, wheel: Path, clone: Path) -> None:
    (rebuilt,) = sdist.parent.glob("*.whl")
    assert contents(rebuilt) == contents(wheel)
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    ours = {path.relative_to(clone).as_posix() for path in clone.rglob("*") if path.is_file()}
    missing = {
        name for name in ours - held if "egg-info" not in name and not name.startswith((".", "build/"))
    }
    assert not missing


@pytest.fixture(autouse=True)
def of_one_test(environments: list[Environment], exporting: Environment) -> Iterator[None]:
    """Removes the environments that a test made."""
    shared = len(environments)
    yield
    for environment in environments[shared:]:
        environment.remove()


# -- each extra --


def test_the_base_package(wheel: Path, fresh: Fresh, bundle: Path) -> None:
    """Every command says in one line what to install; following what the edit says makes it work."""
    environment = fresh()
    environment.install(wheel)
    environment.python("import kontext.runtime; kontext.runtime.Pipeline")
    for program in ("kontext-export", "kontext-edit", "kontext-serve", "kontext-bench"):
        environment.succeed(program, "--help")
        environment.succeed(program, "--version")
    environment.succeed("kontext-export", "inspect", ROOT / "tiny" / "checkpoint")
    for words in (["-o", "x"], ["sensitivity", "-o", "x"]):
        said = environment.refuse("kontext-export", *words)
        assert "needs torch, which is not installed: pip install 'kontext-export[export] @ file:" in said, (
            words
        )
    benches = re.findall(r"^    (\S+) ", environment.succeed("kontext-bench", "--help"), re.MULTILINE)
    assert len(benches) > 15
    for name in benches:
        done = environment.run("kontext-bench", name, "--help")
        if done.returncode:
            assert re.fullmatch(
                r"error: this needs \S+, which is not installed: pip install .*\n", done.stderr
            )
    torch = environment.refuse("kontext-edit", bundle, *EDIT, "--backend", "torch")
    assert (
        "the torch backend needs PyTorch, which is not installed: pip install 'kontext-export[torch]" in torch
    )
    said = environment.refuse("kontext-edit", "--server", "grpc://127.0.0.1:1", *EDIT)
    assert "grpc:// needs tritonclient: pip install 'kontext-export[serve]" in said
    for device in ("rtx", "tensorrt"):
        said = environment.refuse("kontext-edit", bundle, *EDIT, "--device", device)
        assert f"is not installed: pip install 'kontext-export[{device}]" in said
    said = environment.refuse("kontext-edit", bundle, *EDIT, "--backend", "onnxruntime")
    assert said.startswith("error: ONNX Runtime is not installed: pip install 'kontext-export[cpu]")
    said = environment.refuse("kontext-edit", bundle, *EDIT)
    assert said.startswith("error: nothing that is installed here runs ")
    environment.follow(said)  # by the processor, OpenVINO or ONNX Runtime
    edit(environment, bundle)


def test_cpu(wheel: Path, fresh: Fresh, bundle: Path, picture: np.ndarray) -> None:
    environment = fresh()
    environment.install(wheel, "cpu")
    assert "CPUExecutionProvider" in environment.providers()
    assert "torch" not in environment.versions()
    assert np.array_equal(edit(environment, bundle), picture)
    said = environment.refuse("kontext-edit", bundle, *EDIT, "--device", "cuda")
    assert "needs ONNX Runtime's CUDAExecutionProvider, which the installed onnxruntime does not have" in said
    environment.follow(said)
    assert "CUDAExecutionProvider" in environment.providers()


def test_gpu_and_two_wheels(
    wheel: Path, fresh: Fresh, bundle: Path, fp8_bundle: Path, picture: np.ndarray
) -> None:
    environment = fresh()
    environment.install(wheel, "gpu")
    assert "CUDAExecutionProvider" in environment.providers()
    assert "onnxruntime" not in environment.versions()
    environment.python(
        "import onnxruntime; onnxruntime.preload_dlls(directory=''); from ctypes import CDLL; "
        "CDLL('libcudart.so.13'); CDLL('libcudnn.so.9')"
    )
    assert decibels(edit(environment, fp8_bundle, "--device", "cpu"), picture) > 25

    environment.install(wheel, "gpu,export")
    assert "onnxruntime" not in environment.versions()

    environment.install(wheel, "cpu")  # over the other
    assert "CUDAExecutionProvider" not in environment.providers()
    told = environment.succeed("kontext-edit", bundle, *EDIT)
    assert "onnxruntime and onnxruntime-gpu are both installed" in told
    said = environment.refuse("kontext-edit", bundle, *EDIT, "--device", "cuda")
    assert "which the installed onnxruntime and onnxruntime-gpu does not have" in said

    environment.pip("uninstall", "-y", "onnxruntime")  # takes files of the other along
    assert "running with PyTorch on the CPU" in environment.succeed("kontext-edit", bundle, *EDIT[:-1])
    said = environment.refuse("kontext-edit", bundle, *EDIT, "--device", "cpu")
    assert "ONNX Runtime is installed but cannot be loaded" in said
    assert "pip uninstall -y onnxruntime-gpu && pip install 'kontext-export[gpu]" in said
    environment.follow(said)
    assert "CUDAExecutionProvider" in environment.providers()
    edit(environment, bundle, "--device", "cpu")


def test_openvino_and_grpc(wheel: Path, fresh: Fresh, bundle: Path, picture: np.ndarray) -> None:
    environment = fresh()
    environment.install(wheel, "serve")
    said = environment.refuse("kontext-edit", "--server", "grpc://127.0.0.1:1", *EDIT)
    assert "needs tritonclient" not in said
    environment.install(wheel, "openvino")
    assert "CPU" in environment.python("import openvino; print(*openvino.Core().available_devices)").split()
    assert "onnxruntime" not in environment.versions()
    assert decibels(edit(environment, bundle, "--device", "openvino"), picture) > 40


def test_rest(wheel: Path, fresh: Fresh, bundle: Path) -> None:
    environment = fresh()
    environment.install(wheel, "cpu")
    said = environment.refuse("kontext-serve", bundle)
    assert re.search(r"this needs \w+, which is not installed: pip install 'kontext-export\[rest\]", said)
    environment.install(wheel, "cpu,rest")
    environment.succeed("kontext-serve", "--help")
    said = environment.refuse("kontext-serve", bundle, "--host", "0.0.0.0", "--port", "0")
    assert "lets other machines in" in said


def test_batch(wheel: Path, fresh: Fresh, bundle: Path) -> None:
    environment = fresh()
    environment.install(wheel, "cpu")
    jobs = environment.scratch / "jobs.parquet"
    jobs.touch()
    said = environment.refuse("kontext-batch", bundle, jobs, "-o", "out")
    assert "pyarrow" in said
    assert "kontext-export[batch]" in said
    environment.install(wheel, "cpu,batch")
    row = "{'prompt': ['a red circle'], 'size': ['64x64'], 'steps': [1]}"
    environment.python(
        f"import pyarrow as p, pyarrow.parquet as q; q.write_table(p.table({row}), {str(jobs)!r})"
    )
    environment.succeed("kontext-batch", bundle, jobs, "-o", "out", "--device", "cpu", "--quiet")
    assert len(list((environment.scratch / "out").glob("*.png"))) == 1
    assert "no Ray" in environment.refuse("kontext-batch", bundle, jobs, "-o", "out", "--ray", "127.0.0.1:1")


def test_torch(wheel: Path, fresh: Fresh, bundle: Path, picture: np.ndarray) -> None:
    """The torch backend needs neither ONNX Runtime nor the exporter's libraries."""
    environment = fresh()
    environment.install(wheel, "torch")
    assert not {"onnxruntime", "onnx", "transformers"} & set(environment.versions())
    assert decibels(edit(environment, bundle, "--backend", "torch", "--device", "cpu"), picture) > 25


def test_the_first_page(exporting: Environment, fp8_bundle: Path, picture: np.ndarray) -> None:
    assert decibels(edit(exporting, fp8_bundle), picture) > 25
    words = ("--prompt", "a red circle on a green background", "--size", "128x128", "-o", "drawn.png")
    exporting.succeed("kontext-edit", "my-bundle", *words)
    told = exporting.succeed("kontext-export", "inspect", ROOT / "tiny" / "checkpoint")
    assert "kontext-tiny" in told


def test_further_extras(wheel: Path, exporting: Environment, bundle: Path, clone: Path) -> None:
    """Added one after another, each works and none removes another."""
    exporting.install(wheel, "export,rtx")
    exporting.python("import tensorrt_rtx; tensorrt_rtx.Logger")
    exporting.install(wheel, "export,bench")
    exporting.install(wheel, "all")
    exporting.python("import openvino, tritonclient.grpc, triton, diffusers, pyarrow.parquet, ray")
    exporting.succeed("kontext-edit", bundle, *EDIT)
    benches = re.findall(r"^    (\S+) ", exporting.succeed("kontext-bench", "--help"), re.MULTILINE)
    for name in benches:
        exporting.succeed("kontext-bench", name, "--help")
    exporting.install(wheel, "peers")
    listed = exporting.python(
        "from kontext.bench.fidelity.peers import ALL_PEERS, GgmlPeer, why_unavailable as why; "
        "installed = (name for name, peer in ALL_PEERS.items() if not isinstance(peer, GgmlPeer)); "
        "print(*filter(None, map(why, installed)))"
    )
    assert listed == ""
    exporting.pip("install", "-c", str(CONSTRAINTS), *EXTRAS["test"])
    exporting.history += ["[test]"]


# -- versions --


def test_the_oldest_versions(wheel: Path, fresh: Fresh, bundle: Path, picture: np.ndarray) -> None:
    """Of what runs bundles, on the oldest Python that is here."""
    extras = ("cpu", "openvino", "serve", "rest", "batch")
    oldest = [requirement for extra in extras for requirement in EXTRAS[extra]]
    environment = fresh(pythons()[min(pythons())])
    environment.install(wheel, "cpu", *lower_bounds([*REQUIREMENTS, *oldest]), constraints=None)
    environment.python("import tritonclient.grpc, pyarrow.parquet, ray, kontext.rest.app")
    for device in ("cpu", "openvino"):
        assert decibels(edit(environment, bundle, "--device", device), picture) > 40, device


def test_the_oldest_versions_that_export(wheel: Path, fresh: Fresh, picture: np.ndarray) -> None:
    """PyTorch among them, whose wheel on the index is the one with CUDA: this alone is half of all downloads."""
    environment = fresh(pythons()[min(pythons())])
    oldest = lower_bounds([*EXTRAS["cpu"], *EXTRAS["export"]])
    environment.install(wheel, "cpu,export", *oldest, constraints=None)
    environment.succeed("kontext-export", "--fp32", "-o", "bundle", "--quiet")
    for backend in ("onnxruntime", "torch"):
        bundle = environment.scratch / "bundle"
        edited = edit(environment, bundle, "--backend", backend, "--device", "cpu")
        assert decibels(edited, picture) > 40


@pytest.mark.parametrize("minor", MINORS)
def test_the_newest_versions(
    wheel: Path, fresh: Fresh, bundle: Path, picture: np.ndarray, minor: int
) -> None:
    if minor not in pythons():
        pytest.skip(f"this machine has no Python 3.{minor}")
    environment = fresh(pythons()[minor])
    environment.install(wheel, "cpu", constraints=None)
    assert decibels(edit(environment, bundle), picture) > 40


@pytest.mark.parametrize("minor", [12, 13])
def test_the_packages_of_the_servers_image(
    wheel: Path, fresh: Fresh, bundle: Path, picture: np.ndarray, minor: int
) -> None:
    """The locked ones with their hashes are all that the runtime needs."""
    if minor not in pythons():
        pytest.skip(f"there is no Python 3.{minor} here")
    environment = fresh(pythons()[minor])
    lock = ROOT / "export" / "server" / "templates" / "requirements-onnxruntime.txt"
    environment.pip("install", "--require-hashes", "-r", str(lock))
    environment.pip("install", "--no-deps", str(wheel))
    assert decibels(edit(environment, bundle), picture) > 40


def test_every_pin_is_installed_somewhere(environments: list[Environment]) -> None:
    """Last: needs the environments of the tests above."""
    if not any("[peers]" in environment.history for environment in environments):
        pytest.skip("needs the whole file's environments")
    installed = {pair for environment in environments for pair in environment.versions().items()}
    installed = {(name, version.partition("+")[0]) for name, version in installed}
    pins = [line.split("==") for line in CONSTRAINTS.read_text().splitlines() if "==" in line]
    assert not [name for name, version in pins if (normalized(name), version.strip()) not in installed]


def test_documented_installations_are_tested() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.py"))
    run = set(re.findall(r'install\(wheel, "([a-z,]+)"', sources))
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for extras in re.findall(r"'\.\[([a-z,]+)\]'", document.read_text(encoding="utf-8")):
            assert extras in run, f"{document.name}: pip install '.[{extras}]' is tested nowhere"
