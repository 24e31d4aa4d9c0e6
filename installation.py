"""What is installed beside this package, and what to type for what is not.

The package may come from a clone, from a wheel or from an index; `install_command` names the place it came from.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

DISTRIBUTION = "kontext-export"
VERSION = "0.1.0"
"""As pyproject.toml has it. A copy that is not installed, as in a server's model repository, knows it too."""

ROOT = Path(__file__).resolve().parent

EXTRAS = {
    **dict.fromkeys(("PIL", "numpy", "safetensors", "shtab", "tokenizers", "tomli", "tqdm"), ""),
    **dict.fromkeys(
        (
            *("gguf", "huggingface_hub", "matplotlib", "ml_dtypes", "onnx", "onnx_ir", "onnxscript"),
            *("torch", "transformers"),
        ),
        "export",
    ),
    **dict.fromkeys(
        (
            *("accelerate", "diffusers", "flip_evaluator", "psutil", "pytorch_msssim", "sentencepiece"),
            *("pynvml", "scipy", "simpy", "skimage", "ssimulacra2"),
        ),
        "bench",
    ),
    **dict.fromkeys(("bitsandbytes", "modelopt", "nncf", "optimum", "torchao"), "peers"),
    **dict.fromkeys(("pyarrow", "ray"), "batch"),
    **dict.fromkeys(("fastapi", "prometheus_client", "pydantic", "python_multipart", "uvicorn"), "rest"),
    "onnxruntime": "cpu",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "rtx",
    "triton": "kernels",
    "tritonclient": "serve",
}
"""Module of a library → the extra that installs it, "" for what every installation has."""


def install_command(*extras: str) -> str:
    """The command that adds extras to this installation, such as `pip install '.[gpu]'` in a clone."""
    wanted = f"[{','.join(extras)}]" if any(extras) else ""
    return shlex.join(["pip", "install", *requirement(wanted)])


def origin() -> dict[str, Any]:
    """Where this installation came from (PEP 610); empty if it came from an index."""
    import json  # with the other 40 ms, which only errors wait for
    from importlib.metadata import distributions

    # Several if Python runs in a clone: the folder that setuptools leaves there says nothing of the origin.
    origins = [
        text for each in distributions(name=DISTRIBUTION) if (text := each.read_text("direct_url.json"))
    ]
    if not origins and (ROOT / "pyproject.toml").is_file():  # a clone on PYTHONPATH
        return {"url": ROOT.as_uri(), "dir_info": {}}
    found: dict[str, Any] = json.loads(origins[0]) if origins else {}
    return found


def requirement(extras: str) -> list[str]:
    """What pip takes for this package with `extras` ("[gpu]" or ""), from where it was installed."""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    came = origin()
    url = urlsplit(came.get("url", ""))
    local = Path(url2pathname(url.path)) if url.scheme == "file" else None
    if "vcs_info" in came:
        vcs = came["vcs_info"]
        return [f"{DISTRIBUTION}{extras} @ {vcs['vcs']}+{came['url']}@{vcs['commit_id']}"]
    if local is not None and (local / "pyproject.toml").is_file():
        place = "." if local == Path.cwd() else str(local)
        return [*(["-e"] if came["dir_info"].get("editable") else []), f"{place}{extras}"]
    if url.scheme and (local is None or local.is_file()):
        return [f"{DISTRIBUTION}{extras} @ {came['url']}"]
    return [f"{DISTRIBUTION}{extras}"]


def missing_library(module: str) -> str | None:
    """What to install for a module that cannot be found, in one line; None if it is of no library that we need."""
    name = module.partition(".")[0]
    if name not in EXTRAS:
        return None
    return f"this needs {name}, which is not installed: {install_command(EXTRAS[name])}"
