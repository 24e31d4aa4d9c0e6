"""Linked bundles: no weight is copied, pictures are the same, and no other file is ever opened."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from safetensors.torch import load_file, save_file  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.export.bundle.additions import record  # noqa: E402
from kontext.export.cli import main  # noqa: E402
from kontext.export.graph import link_weights  # noqa: E402
from kontext.model.checkpoint import load_state  # noqa: E402
from kontext.runtime.backends.onnxruntime import OnnxRuntimeBackend  # noqa: E402
from kontext.runtime.backends.options import OnnxRuntimeOptions  # noqa: E402
from kontext.runtime.bundle import GRAPHS, Bundle  # noqa: E402

pytestmark = pytest.mark.usefixtures("fast_trace")


def export(*arguments: object) -> int:
    return main.main([*map(str, arguments), "--fp32", "--quiet"])


@pytest.fixture
def linked(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A linked bundle and a copy of the checkpoint that it links to."""
    model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    assert export(model, "-o", tmp_path / "linked", "--link-weights") == 0
    return tmp_path / "linked"


def run_all(folder: Path) -> dict[str, list[np.ndarray]]:
    """Outputs of every graph for the same random inputs."""
    bundle = Bundle.open(folder)
    graphs = {name: entry.path for name, entry in bundle.graphs.items()}
    backend = OnnxRuntimeBackend(graphs, "cpu", OnnxRuntimeOptions(threads=1), files=bundle.linked_files)
    sizes = {
        "batch": 2,
        "rows": 2,
        "target_tokens": 16,
        "reference_tokens": 16,
        "latent_height": 4,
        "latent_width": 4,
    }
    results = {}
    for name in GRAPHS:
        rng = np.random.default_rng(1)
        session = backend.session(name)
        feeds = {}
        for node in session.get_inputs():
            shape = []
            for dimension in node.shape:
                if isinstance(dimension, str):
                    factor, _, key = dimension.rpartition("*")
                    terms = key.split(" + ")
                    dimension = int(factor or 1) * sum(sizes.get(term, 24) for term in terms)
                shape.append(dimension)
            if "int64" in node.type:
                feeds[node.name] = rng.integers(0, 100, shape)
            else:
                feeds[node.name] = rng.standard_normal(shape, np.float32)
        results[name] = session.run(None, feeds)
    return results


def test_no_weight_is_copied(linked: Path, tiny_bundle: Path) -> None:
    weights = {path.name: path.stat().st_size for path in (linked / "weights").iterdir()}
    # T5's table of buckets is the one constant that no checkpoint has.
    assert weights.pop("text_encoder_2.safetensors") < 24 * 24 * 8 + 500
    assert max(weights.values()) < 20
    links = Bundle.open(linked).links
    assert len(links) == 4
    assert all(entry.path.is_relative_to(linked.parent / "model") for entry in links.values())
    assert Bundle.open(linked).weight_bytes >= Bundle.open(tiny_bundle).weight_bytes * 0.99


def test_the_same_results(linked: Path, tiny_bundle: Path) -> None:
    expected, found = run_all(tiny_bundle), run_all(linked)
    for name in GRAPHS:
        for ours, theirs in zip(found[name], expected[name], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * max(1, float(np.abs(theirs).max())))


OPENAI = {
    "text_model.": "",
    "embeddings.token": "token",
    "embeddings.position_embedding.weight": "positional_embedding",
    "encoder.layers": "transformer.resblocks",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "final_layer_norm": "ln_final",
}
"""transformers' names of CLIP's weights → OpenAI's, replaced in this order."""


def openai_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, tensor in state.items():
        for ours, theirs in OPENAI.items():
            name = name.replace(ours, theirs)
        tensors[name] = tensor
    for name in [name for name in tensors if "q_proj" in name]:
        parts = [tensors.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        tensors[name.replace("self_attn.q_proj.", "attn.in_proj_")] = torch.cat(parts)
    return tensors


def test_single_files_are_linked_too(tiny_checkpoint: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Fused weights of Black Forest Labs' file need no assembly, whatever its norms are called; the autoencoder's 1x1
    convolutions become linears, and parts of OpenAI's fused weights are linked where they are."""
    state = load_state(tiny_checkpoint)
    transformer = {**state["modulation"], **state["transformer"]}
    norms = {name: name.replace("_norm.scale", "_norm.weight") for name in transformer}
    save_file({norms[name]: tensor for name, tensor in transformer.items()}, tmp_path / "flux.safetensors")
    save_file(openai_clip(state["text_encoder"]), tmp_path / "clip.safetensors")
    attention = (
        "mid.attn_1.q.weight",
        "mid.attn_1.k.weight",
        "mid.attn_1.v.weight",
        "mid.attn_1.proj_out.weight",
    )
    halves = {
        f"{half}.{name}": tensor[..., None, None].contiguous() if name in attention else tensor
        for half in ("encoder", "decoder")
        for name, tensor in state[f"vae_{half}"].items()
    }
    save_file(halves, tmp_path / "ae.safetensors")
    arguments = [
        tmp_path / "flux.safetensors",
        "--vae",
        tmp_path / "ae.safetensors",
        "--clip",
        tmp_path / "clip.safetensors",
        "--base",
        tiny_checkpoint,
    ]
    assert export(*arguments, "-o", tmp_path / "linked", "--link-weights") == 0
    assert (tmp_path / "linked/weights/text_encoder.safetensors").stat().st_size < 100
    expected, found = run_all(tiny_bundle), run_all(tmp_path / "linked")
    for name in GRAPHS:
        for ours, theirs in zip(found[name], expected[name], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * max(1, float(np.abs(theirs).max())))


def test_what_needs_conversion_is_copied(tiny_checkpoint: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    path = model / "vae/diffusion_pytorch_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    assert export(model, "-o", tmp_path / "linked", "--link-weights", "--fp8") == 0
    bundle = Bundle.open(tmp_path / "linked")
    assert not any(entry.path == path for entry in bundle.links.values())
    assert (tmp_path / "linked/weights/vae_decoder.safetensors").stat().st_size > 10_000
    header = (tmp_path / "linked/weights/transformer.safetensors").read_bytes()[:4000]
    assert b"double_blocks.0.img_attn.qkv.weight_scale" in header
    assert b'"img_in.weight"' not in header


def test_the_export_says_what_it_linked_and_why_it_copied(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a bf16 checkpoint exported in fp32 nothing is linked. Oracle: the tensors that safetensors counts."""
    model = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    for path in model.rglob("*.safetensors"):
        save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)

    def line(*words: object) -> str:
        assert main.main([str(word) for word in words]) == 0
        (found,) = (each for each in capsys.readouterr().out.splitlines() if "--link-weights: " in each)
        return found.strip()

    copied = line(model, "-o", tmp_path / "copied", "--fp32", "--link-weights")
    files = (tmp_path / "copied/weights").glob("*.safetensors")
    count = sum(len(load_file(path)) for path in files)
    constants = 1  # T5's table of buckets, which no checkpoint has
    assert copied.startswith("--link-weights: 0 weights linked (0 B), ")
    assert copied.endswith(f"MB): {count - constants} in BF16, not F32")
    linked = line(tiny_checkpoint, "-o", tmp_path / "linked", "--fp32", "--link-weights")
    assert linked.startswith(f"--link-weights: {count - constants} weights linked (")
    assert ", 0 copied (" in linked
    quantized = line(tiny_checkpoint, "-o", tmp_path / "fp8", "--fp32", "--fp8", "--link-weights")
    assert quantized.endswith(" quantized to fp8")
    state = load_state(tiny_checkpoint)
    scaled = {**state["modulation"], **state["transformer"]}
    scaled["img_in.weight"] = scaled["img_in.weight"].to(torch.float8_e4m3fn)
    save_file({**scaled, "img_in.weight_scale": torch.tensor(2.0)}, tmp_path / "scaled.safetensors")
    decoded = line(
        *(tmp_path / "scaled.safetensors", "--base", tiny_checkpoint, "-o", tmp_path / "scaled"),
        *("--fp32", "--link-weights"),
    )
    assert decoded.endswith("kB): 1 decoded from F8_E4M3 scaled")


def test_its_exporter_alone_needs_no_permission(
    linked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(linked)
    assert len(bundle.linked_files) == 4 + len(GRAPHS)
    bundle.verify()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of somebody else"))
    with pytest.raises(KontextError, match="you have not exported it on this machine"):
        bundle.linked_files  # noqa: B018


def test_what_is_added_to_a_linked_bundle_keeps_it_its_exporter_s(linked: Path) -> None:
    before = Bundle.open(linked)
    after = record(before, lambda manifest: manifest.update(engines=[], added=True))
    assert after.digest != before.digest
    assert after.linked_files == before.linked_files


def test_a_changed_or_missing_file_is_refused(linked: Path) -> None:
    path = linked.parent / "model/vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    save_file(tensors, path, metadata={"made": "anew"})
    with pytest.raises(KontextError, match=r"is not the file that .* was exported over"):
        Bundle.open(linked).linked_files  # noqa: B018
    path.unlink()
    with pytest.raises(KontextError, match="does not exist, and the bundle takes weights from it"):
        Bundle.open(linked).linked_files  # noqa: B018


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/etc/passwd", "^/etc/passwd is not the file that .* was exported over; export it again$"),
        ("../model/vae/config.json", r"path must be an absolute path, not '\.\./model/vae/config\.json'$"),
        ("relative.safetensors", r"path must be an absolute path, not 'relative\.safetensors'$"),
    ],
)
def test_a_bundle_cannot_point_anywhere(target: str, message: str, linked: Path) -> None:
    manifest = json.loads((linked / "manifest.json").read_text())
    manifest["links"][next(iter(manifest["links"]))]["path"] = target
    (linked / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(KontextError, match=message):
        Bundle.open(linked, allow_links=True).linked_files  # noqa: B018


def test_a_bundle_cannot_point_at_another_weight_file(linked: Path) -> None:
    """The other file is one that the bundle links to as well, and whole."""
    manifest = json.loads((linked / "manifest.json").read_text())
    first, second = list(manifest["links"].values())[:2]
    first["path"] = second["path"]
    (linked / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        KontextError, match="^" + re.escape(f"{second['path']} is not the file that {linked} ")
    ):
        Bundle.open(linked, allow_links=True).linked_files  # noqa: B018


def test_names_inside_the_bundle_are_all_different(tmp_path: Path) -> None:
    paths = [tmp_path / part / "vae" / "model.safetensors" for part in "abc"]
    names = link_weights.link_names(paths)
    assert len(set(names.values())) == 3
    assert link_weights.link_names([Path("/my model/ä b.safetensors")]) == {
        Path("/my model/ä b.safetensors"): "links/my_model/ä_b.safetensors"
    }
