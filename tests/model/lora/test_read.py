"""Whole LoRA files and folders: every kind under every name, what is left out with a note, and the flag --lora.

Files of every trainer's names against diffusers' converters: test_lora.py; merges against PEFT and LyCORIS:
test_modules.py.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from kontext.errors import KontextError  # noqa: E402
from kontext.model.checkpoint import Checkpoint  # noqa: E402
from kontext.model.lora.read import read_loras  # noqa: E402

from .fusing import State, Tensors, assert_same, diffusers_linears, factors, fuse, kohya, linears, write  # noqa: E402

CONFIG = json.loads(Path(__file__).with_name("golden.json").read_text())["PEFT LoRA"]["config"]


def double(state: State) -> State:
    return {
        name: {key: tensor.double() for key, tensor in weights.items()} for name, weights in state.items()
    }


def randoms(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


KINDS: dict[str, Callable[[int, int], dict[str, tuple[int, ...]]]] = {
    "LoKr": lambda height, width: {"lokr_w1": (4, 2), "lokr_w2": (height // 4, width // 2)},
    "LoKr, low rank": lambda height, width: {
        "lokr_w1": (4, 2),
        "lokr_w2_a": (height // 4, 3),
        "lokr_w2_b": (3, width // 2),
    },
    "LoHa": lambda height, width: {
        f"hada_w{i}_{end}": (height, 2) if end == "a" else (2, width) for i in (1, 2) for end in "ab"
    },
    "DoRA": lambda height, width: {
        "lora_down.weight": (2, width),
        "lora_up.weight": (height, 2),
        "dora_scale": (height, 1),
    },
    "DoRA by columns": lambda height, width: {
        "lora_down.weight": (2, width),
        "lora_up.weight": (height, 2),
        "dora_scale": (1, width),
    },
}


def merged(weight: torch.Tensor, own: Tensors) -> torch.Tensor:
    """The formulas, in float64."""
    own = {role: tensor.double() for role, tensor in own.items()}
    if "lokr_w1" in own:
        low = "lokr_w2_a" in own
        w2 = own["lokr_w2_a"] @ own["lokr_w2_b"] * own["alpha"] / 3 if low else own["lokr_w2"]
        return weight + torch.kron(own["lokr_w1"], w2)
    if "hada_w1_a" in own:
        products = (own[f"hada_w{i}_a"] @ own[f"hada_w{i}_b"] for i in (1, 2))
        return weight + own["alpha"] / 2 * next(products) * next(products)
    total = weight + own["alpha"] / 2 * own["lora_up.weight"] @ own["lora_down.weight"]
    dim = 1 if own["dora_scale"].shape[1] == 1 else 0
    return own["dora_scale"] * total / total.norm(dim=dim, keepdim=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", ["BFL", "diffusers"])
def test_every_kind_on_every_linear(
    checkpoint: Checkpoint, tiny_checkpoint: Path, state: State, tmp_path: Path, kind: str, names: str
) -> None:
    """In ai-toolkit's names, and in SimpleTuner's, whose linears are rows of fused ones or exchanged halves."""
    from safetensors.torch import load_file

    native = names == "BFL"
    shapes = linears(checkpoint, "transformer", "modulation") if native else diffusers_linears(checkpoint)
    shapes = {module: shape for module, shape in shapes.items() if shape[0] % 4 == 0 and shape[1] % 2 == 0}
    spell = (lambda module: f"diffusion_model.{module}") if native else kohya("lycoris_")
    updates = {
        module: randoms(KINDS[kind](*shape), seed) | {"alpha": torch.tensor(1.0 + seed % 3)}
        for seed, (module, shape) in enumerate(shapes.items())
    }
    path = write(
        tmp_path / "a.safetensors",
        {
            f"{spell(module)}.{role}": tensor
            for module, own in updates.items()
            for role, tensor in own.items()
        },
    )
    if native:
        expected = double({name: state[name] for name in ("transformer", "modulation")})
        for network, weights in expected.items():
            for module in linears(checkpoint, network):
                if module in updates:
                    weights[f"{module}.weight"] = merged(weights[f"{module}.weight"], updates[module])
    else:
        file = tiny_checkpoint / "transformer/diffusion_pytorch_model.safetensors"
        base = {name: tensor.double() for name, tensor in load_file(file).items()}
        for module, own in updates.items():
            base[f"{module}.weight"] = merged(base[f"{module}.weight"], own)
        expected = {
            name: {
                weight: source.assemble(base.__getitem__)
                for weight, source in checkpoint.networks[name].sources.items()
            }
            for name in ("transformer", "modulation")
        }
    fused, files = fuse(checkpoint, state, (path, 1.0))
    assert_same(fused, expected)
    assert files[0].notes == []


DIFFSYNTH = {
    "blocks.0.attn.a_to_qkv": "double_blocks.0.img_attn.qkv",
    "blocks.0.attn.b_to_qkv": "double_blocks.0.txt_attn.qkv",
    "blocks.0.attn.a_to_out": "double_blocks.0.img_attn.proj",
    "blocks.0.attn.b_to_out": "double_blocks.0.txt_attn.proj",
    "blocks.0.ff_a.0": "double_blocks.0.img_mlp.0",
    "blocks.0.ff_a.2": "double_blocks.0.img_mlp.2",
    "blocks.0.ff_b.0": "double_blocks.0.txt_mlp.0",
    "blocks.0.ff_b.2": "double_blocks.0.txt_mlp.2",
    "blocks.0.norm1_a.linear": "double_blocks.0.img_mod.lin",
    "blocks.0.norm1_b.linear": "double_blocks.0.txt_mod.lin",
    "single_blocks.1.to_qkv_mlp": "single_blocks.1.linear1",
    "single_blocks.1.proj_out": "single_blocks.1.linear2",
    "single_blocks.1.norm.linear": "single_blocks.1.modulation.lin",
    "final_norm_out.linear": "final_layer.adaLN_modulation.1",
    "final_proj_out": "final_layer.linear",
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_embedder.timestep_embedder.0": "time_in.in_layer",
    "pooled_text_embedder.2": "vector_in.out_layer",
}
"""DiffSynth-Studio's name → Black Forest Labs', from its table for their checkpoints and its Kontext recipe."""


@pytest.mark.parametrize("prefix", ["", "pipe.dit.", "diffusion_model."])
def test_the_names_of_diffsynth_studio(
    checkpoint: Checkpoint, state: State, tmp_path: Path, prefix: str
) -> None:
    shapes = linears(checkpoint, "transformer", "modulation")
    ours = {native: shapes[native] for native in DIFFSYNTH.values()}
    theirs = {prefix + name: shapes[native] for name, native in DIFFSYNTH.items()}
    first, _ = fuse(checkpoint, state, (write(tmp_path / "a.safetensors", factors(ours)), 1))
    path = write(tmp_path / "b.safetensors", factors(theirs, style="A.default B.default"))
    second, _ = fuse(checkpoint, state, (path, 1))
    assert_same(second, double(first))
    assert not torch.equal(first["transformer"]["img_in.weight"], state["transformer"]["img_in.weight"])


def test_parts_of_fused_linears_in_diffsynth_studios_names(
    checkpoint: Checkpoint, state: State, tmp_path: Path
) -> None:
    names = {
        "blocks.0.attn.b_to_v": "transformer_blocks.0.attn.add_v_proj",
        "blocks.0.attn.a_to_k": "transformer_blocks.0.attn.to_k",
        "single_blocks.0.a_to_q": "single_transformer_blocks.0.attn.to_q",
        "single_blocks.0.proj_in_besides_attn": "single_transformer_blocks.0.proj_mlp",
    }
    shapes = {native: diffusers_linears(checkpoint)[native] for native in names.values()}
    first, _ = fuse(checkpoint, state, (write(tmp_path / "a.safetensors", factors(shapes)), 1))
    theirs = {name: shapes[native] for name, native in names.items()}
    second, _ = fuse(checkpoint, state, (write(tmp_path / "b.safetensors", factors(theirs)), 1))
    assert_same(second, double(first))


NORM = "double_blocks.0.img_attn.norm.query_norm"


@pytest.mark.parametrize(
    ("name", "replaces"),
    [
        (f"{NORM}.scale", True),
        (f"{NORM}.weight", True),
        (f"diffusion_model.{NORM}.weight", True),
        ("transformer.transformer_blocks.0.attn.norm_q.weight", True),
        (f"diffusion_model.{NORM}.set_weight", True),
        (f"diffusion_model.{NORM}.diff", False),
        (f"diffusion_model.{NORM}.scale.diff", False),
        (f"diffusion_model.{NORM}.weight.diff", False),
        ("transformer.transformer_blocks.0.attn.norm_q.diff", False),
        ("lora_unet_double_blocks_0_img_attn_norm_query_norm.w_norm", False),
        ("blocks.0.attn.norm_q_a.diff", False),
    ],
)
def test_norms(checkpoint: Checkpoint, state: State, tmp_path: Path, name: str, replaces: bool) -> None:
    """Replaced whatever the weight (BFL's control LoRAs, ComfyUI's set_weight), or a difference times the weight."""
    tensors = factors({"img_in": (64, 64)}) | {name: torch.linspace(0.5, 1.5, 32)}
    fused, _ = fuse(checkpoint, state, (write(tmp_path / "a.safetensors", tensors), 0.5))
    own = state["transformer"][f"{NORM}.scale"]
    expected = tensors[name] if replaces else own + 0.5 * tensors[name]
    torch.testing.assert_close(fused["transformer"][f"{NORM}.scale"], expected)


def test_norms_of_a_text_encoder(checkpoint: Checkpoint, state: State, tmp_path: Path) -> None:
    layer = "text_model.encoder.layers.0.layer_norm1"
    name = "lora_te1_" + layer.replace(".", "_")
    tensors = {f"{name}.w_norm": torch.ones(32), f"{name}.b_norm": torch.ones(32)}
    width = len(state["text_encoder"][f"{layer}.weight"])
    tensors = {key: torch.ones(width) for key in tensors}
    fused, _ = fuse(checkpoint, state, (write(tmp_path / "a.safetensors", tensors), 2))
    for end in ("weight", "bias"):
        own = state["text_encoder"][f"{layer}.{end}"]
        torch.testing.assert_close(fused["text_encoder"][f"{layer}.{end}"], own + 2)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_factors_in_fp8(checkpoint: Checkpoint, state: State, tmp_path: Path, dtype: torch.dtype) -> None:
    narrow = {name: tensor.to(dtype) for name, tensor in factors({"img_in": (64, 64)}).items()}
    fused, _ = fuse(checkpoint, state, (write(tmp_path / "a.safetensors", narrow), 1))
    wide = {name: tensor.float() for name, tensor in narrow.items()}
    expected, _ = fuse(checkpoint, state, (write(tmp_path / "b.safetensors", wide), 1))
    assert_same(fused, double(expected))


LEFT_OUT: dict[str, tuple[Tensors, str]] = {
    "OneTrainer's embeddings": (
        {"bundle_emb.<word>.clip_l": torch.ones(2, 768), "bundle_emb.<word>.t5": torch.ones(2, 4096)},
        "bundle_emb",
    ),
    "text_projection": (
        {
            "lora_te1_text_projection.lora_down.weight": torch.ones(1, 768),
            "lora_te1_text_projection.lora_up.weight": torch.ones(768, 1),
            "lora_te1_text_projection.alpha": torch.ones(()),
        },
        "text_projection is not used",
    ),
    "alpha alone": ({"txt_in.alpha": torch.ones(())}, "alpha without factors was left out: txt_in.alpha"),
    "all zeros": (
        {"other.lora_A.weight": torch.zeros(1, 64), "img_attn.diff_b": torch.zeros(3)},
        "match no weight but are all zeros were left out: img_attn.diff_b, other.lora_A.weight",
    ),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_what_is_left_out_with_a_note(
    checkpoint: Checkpoint, state: State, tmp_path: Path, kind: str
) -> None:
    tensors, note = LEFT_OUT[kind]
    known = factors({"img_in": (64, 64)})
    expected, _ = fuse(checkpoint, state, (write(tmp_path / "a.safetensors", known), 1))
    fused, files = fuse(checkpoint, state, (write(tmp_path / "b.safetensors", known | tensors), 1))
    assert_same(fused, double(expected))
    assert files[0].unmatched == []
    assert len(files[0].notes) == 1
    assert note in files[0].notes[0]


def test_a_folder_that_peft_wrote(checkpoint: Checkpoint, state: State, tmp_path: Path) -> None:
    """alpha and rank from adapter_config.json, a linear saved in full (modules_to_save), and LoRA's own biases."""
    prefix = "base_model.model."
    known = factors({"x_embedder": (64, 64), "context_embedder": (64, 48)})
    known = {name: tensor for name, tensor in known.items() if "x_embedder" in name}
    saved = {"proj_out.weight": torch.ones(64, 64), "proj_out.bias": torch.ones(64)}
    biases = {"x_embedder.base_layer.bias": torch.full((64,), 2.0)}
    tensors = {prefix + name: tensor for name, tensor in (known | saved | biases).items()}
    path = write(tmp_path / "adapter_model.safetensors", tensors)
    config = CONFIG | {"r": 1, "lora_alpha": 4, "modules_to_save": ["proj_out"], "bias": "lora_only"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    fused, files = fuse(checkpoint, state, (tmp_path, 0.5))
    own = state["transformer"]["img_in.weight"].double()
    change = 4 * 0.5 * known["x_embedder.lora_B.weight"].double() @ known["x_embedder.lora_A.weight"].double()
    torch.testing.assert_close(
        fused["transformer"]["img_in.weight"].double(), own + change, rtol=1e-5, atol=1e-6
    )
    assert torch.equal(fused["transformer"]["final_layer.linear.weight"], torch.ones(64, 64))
    assert torch.equal(fused["transformer"]["final_layer.linear.bias"], torch.ones(64))
    assert torch.equal(fused["transformer"]["img_in.bias"], torch.full((64,), 2.0))
    assert (files[0].path, files[0].notes) == (path, [])
    assert files[0].name == f"{tmp_path.name}/adapter_model.safetensors"

    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 5}))
    shapes = {name: network.shapes for name, network in checkpoint.networks.items()}
    _, again = read_loras([(path, 0.5)], shapes, checkpoint.config)
    assert again[0].digest != files[0].digest

    del config["modules_to_save"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(KontextError, match="1 of its 5 tensors match no weight"):
        fuse(checkpoint, state, (tmp_path, 0.5))


VALUES = [None, True, -1, 0, 1.5, 10**400, "x", "", [], [[1]], {}, {"a": {}}]


@pytest.mark.parametrize("name", [*CONFIG, "alpha"])
def test_any_value_of_a_setting_is_read_or_refused(
    checkpoint: Checkpoint, state: State, tmp_path: Path, name: str
) -> None:
    tensors = {f"base_model.model.{key}": tensor for key, tensor in factors({"x_embedder": (64, 64)}).items()}
    write(tmp_path / "adapter_model.safetensors", tensors)
    shapes = {key: network.shapes for key, network in checkpoint.networks.items()}
    for value in VALUES:
        (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | {"r": 1, name: value}))
        with contextlib.suppress(KontextError):
            read_loras([(tmp_path, 1.0)], shapes, checkpoint.config)


def test_alpha_of_the_header_is_applied_and_told(
    checkpoint: Checkpoint, state: State, tmp_path: Path
) -> None:
    tensors = factors({"img_in": (64, 64)})
    once, _ = fuse(checkpoint, state, (write(tmp_path / "a.safetensors", tensors), 4))
    path = write(tmp_path / "b.safetensors", tensors, {"lora_alpha": "4", "r": "1"})
    fused, files = fuse(checkpoint, state, (path, 1))
    assert_same(fused, double(once))
    assert files[0].notes == ["alpha 4 from the header: the factors of rank 1 are multiplied by 4"]


def test_folders(checkpoint: Checkpoint, state: State, tmp_path: Path) -> None:
    with pytest.raises(KontextError, match=r"is a folder: name the .safetensors file in it \(has none\)"):
        fuse(checkpoint, state, (tmp_path, 1))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(KontextError, match=r"no adapter_model.safetensors: save it with PEFT's"):
        fuse(checkpoint, state, (tmp_path, 1))
    (tmp_path / "adapter_config.json").unlink()
    tensors = factors({"img_in": (64, 64)})
    path = write(tmp_path / "style.safetensors", tensors)
    assert fuse(checkpoint, state, (tmp_path, 1))[1][0].path == path
    write(tmp_path / "other.safetensors", tensors)
    with pytest.raises(KontextError, match=r"\(holds other.safetensors, style.safetensors\)"):
        fuse(checkpoint, state, (tmp_path, 1))
    path = write(tmp_path / "pytorch_lora_weights.safetensors", tensors)
    assert fuse(checkpoint, state, (tmp_path, 1))[1][0].path == path
