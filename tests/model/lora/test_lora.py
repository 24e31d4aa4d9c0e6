"""Fused LoRAs of every trainer against diffusers' own converters; and everything that is refused.

Reference: diffusers turns the file into its own names, W + scale * B @ A is taken there in float64.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import FluxKontextPipeline  # noqa: E402
from diffusers.loaders import lora_conversion_utils, lora_pipeline  # noqa: E402
from diffusers.utils.state_dict_utils import (  # noqa: E402
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
)
from safetensors.torch import load_file  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.model.checkpoint import Checkpoint  # noqa: E402
from kontext.model.lora.read import read_loras  # noqa: E402

from .fusing import State, Tensors, assert_same, diffusers_linears, factors, fuse, kohya, linears, write  # noqa: E402

FILES = {
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "text_encoder_2": "text_encoder_2/model.safetensors",
}
CONVERTERS = ("kohya_flux", "xlabs_flux", "bfl_flux_control", "fal_kontext")
TINY = {"19": "1", "38": "2", "3072": "64", "12288": "256"}


@pytest.fixture
def tiny_converters(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' converters with the tiny model's sizes in place of FLUX's, which are constants in their code."""
    for name in CONVERTERS:
        function = f"_convert_{name}_lora_to_diffusers"
        source = inspect.getsource(getattr(lora_conversion_utils, function))
        scope = dict(vars(lora_conversion_utils))
        exec(re.sub(r"\b(19|38|3072|12288)\b", lambda number: TINY[number[0]], source), scope)
        monkeypatch.setattr(lora_pipeline, function, scope[function])


def with_alphas(tensors: Tensors, skip: str = "final_layer") -> Tensors:
    """A different alpha for every module except the final layer, whose alpha diffusers ignores in kohya's files."""
    modules = [name.rsplit(".lora_", 1)[0] for name in tensors if name.endswith(".weight")]
    return tensors | {
        f"{module}.alpha": torch.tensor(0.5 + index % 7)
        for index, module in enumerate(dict.fromkeys(modules))
        if skip not in module
    }


def peft(checkpoint: Checkpoint) -> Tensors:
    tensors = factors(diffusers_linears(checkpoint), lambda module: f"transformer.{module}")
    return tensors | factors(linears(checkpoint, "text_encoder"), lambda module: f"text_encoder.{module}")


def peft_alphas(checkpoint: Checkpoint) -> Tensors:
    return with_alphas(factors(diffusers_linears(checkpoint), lambda module: f"transformer.{module}"))


def sd_scripts(checkpoint: Checkpoint) -> Tensors:
    names = linears(checkpoint, "transformer", "modulation")
    tensors = factors(names, kohya("lora_unet_"), "lora_down lora_up")
    clip = factors(linears(checkpoint, "text_encoder"), kohya("lora_te1_"), "lora_down lora_up", seed=1)
    return with_alphas(tensors | clip)


def one_trainer(checkpoint: Checkpoint) -> Tensors:
    # diffusers reads no other module of these files
    names = {
        module: shape
        for module, shape in diffusers_linears(checkpoint).items()
        if ".attn." in module or "blocks" not in module
    }
    tensors = factors(names, kohya("lora_transformer_"), "lora_down lora_up")
    clip = factors(linears(checkpoint, "text_encoder"), kohya("lora_te1_"), "lora_down lora_up", seed=1)
    return with_alphas(tensors | clip)


def comfyui(checkpoint: Checkpoint) -> Tensors:
    names = linears(checkpoint, "transformer", "modulation")
    tensors = factors(names, lambda module: f"diffusion_model.{module}", "lora_down lora_up")
    clip = factors(
        linears(checkpoint, "text_encoder"),
        lambda module: f"text_encoders.clip_l.transformer.{module}",
        "lora_down lora_up",
    )
    return with_alphas(tensors | clip)


def bfl_control(checkpoint: Checkpoint) -> Tensors:
    names = linears(checkpoint, "transformer", "modulation")
    tensors = factors(names)
    # diffusers 0.42.1 exchanges the halves of this A as it does B's, though A's rows are ranks: equal rows
    # hide it.
    # The swap itself is held against its reading of kohya's files, which leaves A alone.
    final = "final_layer.adaLN_modulation.1"
    tensors[f"{final}.lora_A.weight"] = torch.linspace(-1, 1, 64).expand(2, 64)
    tensors[f"{final}.lora_B.weight"] = torch.linspace(-1, 1, 256).reshape(128, 2)
    for module, (height, _) in names.items():
        tensors[f"{module}.lora_B.bias"] = torch.linspace(-1, 1, height)
    for weight, shape in checkpoint.networks["transformer"].shapes.items():
        if weight.endswith(".scale"):
            tensors[weight] = torch.linspace(0.5, 1.5, *shape)
    return tensors


def fal(checkpoint: Checkpoint) -> Tensors:
    names = linears(checkpoint, "transformer", "modulation")
    kept = {name: shape for name, shape in names.items() if "blocks" in name or name == "final_layer.linear"}
    return factors(kept, lambda module: f"base_model.model.{module}")


def xlabs(checkpoint: Checkpoint) -> Tensors:
    names = {}
    for number in (1, 2):
        names[f"double_blocks.0.processor.qkv_lora{number}"] = (192, 64)
        names[f"double_blocks.0.processor.proj_lora{number}"] = (64, 64)
    for block in (0, 1):
        names[f"single_blocks.{block}.processor.qkv_lora"] = (192, 64)
        names[f"single_blocks.{block}.processor.proj_lora"] = (64, 320)
    return factors(names, style="down up")


STYLES = (peft, peft_alphas, sd_scripts, one_trainer, comfyui, bfl_control, fal, xlabs)


def reference(checkpoint: Checkpoint, folder: Path, *requests: tuple[Tensors, float]) -> State:
    """Native weights in float64, with the LoRAs as converted by diffusers."""
    base = {
        component: {name: tensor.double() for name, tensor in load_file(folder / file).items()}
        for component, file in FILES.items()
    }
    for tensors, weight in requests:
        converted, alphas = lora_pipeline.FluxLoraLoaderMixin.lora_state_dict(
            dict(tensors), return_alphas=True
        )
        clip = {
            name.removeprefix("text_encoder."): tensor
            for name, tensor in converted.items()
            if name.startswith("text_encoder.")
        }
        if clip:
            clip = convert_state_dict_to_peft(convert_state_dict_to_diffusers(clip))
        rest = {
            name.removeprefix("transformer."): tensor
            for name, tensor in converted.items()
            if not name.startswith("text_encoder.")
        }
        scales = {name.removeprefix("transformer."): float(alpha) for name, alpha in (alphas or {}).items()}
        for component, found in (("transformer", rest), ("text_encoder", clip)):
            add(base[component], found, scales, weight)
    return {
        name: {
            weight: source.assemble(base["transformer" if name == "modulation" else name].__getitem__)
            for weight, source in checkpoint.networks[name].sources.items()
        }
        for name in ("transformer", "modulation", "text_encoder", "text_encoder_2")
    }


def add(base: Tensors, lora: Tensors, alphas: dict[str, float], weight: float) -> None:
    for name, tensor in lora.items():
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            up = lora[f"{module}.lora_B.weight"].double()
            scale = weight * alphas.get(f"{module}.alpha", up.shape[1]) / up.shape[1]
            base[f"{module}.weight"] += scale * up @ tensor.double()
            if f"{module}.lora_B.bias" in lora:
                base[f"{module}.bias"] += scale * lora[f"{module}.lora_B.bias"].double()
        elif "lora" not in name:  # a norm, which diffusers loads over the model's
            assert name in base
            base[name] = tensor.double()


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.__name__)
@pytest.mark.parametrize("weight", [1.0, -0.7])
@pytest.mark.usefixtures("tiny_converters")
def test_every_style_is_what_diffusers_makes_of_it(
    checkpoint: Checkpoint,
    tiny_checkpoint: Path,
    state: State,
    tmp_path: Path,
    style: Callable,
    weight: float,
) -> None:
    tensors = style(checkpoint)
    path = write(tmp_path / "a.safetensors", tensors)
    fused, files = fuse(checkpoint, state, (path, weight))
    assert_same(fused, reference(checkpoint, tiny_checkpoint, (tensors, weight)))
    assert not all(
        torch.equal(fused["transformer"][key], state["transformer"][key]) for key in fused["transformer"]
    )
    assert (files[0].path, files[0].weight, files[0].steps, files[0].unmatched) == (path, weight, None, [])
    assert re.fullmatch("[0-9a-f]{64}", files[0].digest)


@pytest.mark.usefixtures("tiny_converters")
def test_two_at_once(checkpoint: Checkpoint, tiny_checkpoint: Path, state: State, tmp_path: Path) -> None:
    first, second = sd_scripts(checkpoint), peft(checkpoint)
    requests = (
        (write(tmp_path / "a.safetensors", first), 0.8),
        (write(tmp_path / "b.safetensors", second), -1.5),
    )
    fused, files = fuse(checkpoint, state, *requests)
    assert_same(fused, reference(checkpoint, tiny_checkpoint, (first, 0.8), (second, -1.5)))
    assert [file.weight for file in files] == [0.8, -1.5]


SPELLINGS: dict[str, tuple[str, Callable[[str], str], str]] = {
    "no prefix": ("diffusers", str, "A B"),
    "PEFT's prefix": ("diffusers", lambda module: f"base_model.model.{module}", "A B"),
    "an adapter's name": ("diffusers", lambda module: f"transformer.{module}", "A.default B.default"),
    "old diffusers": ("diffusers", lambda module: f"transformer.{module}", "lora.down lora.up"),
    "kohya, diffusers' names": ("diffusers", kohya("lora_transformer_"), "lora_down lora_up"),
    "BFL, no prefix": ("native", str, "A B"),
    "ai-toolkit": ("native", lambda module: f"diffusion_model.{module}", "A B"),
    "ComfyUI checkpoint": ("native", lambda module: f"model.diffusion_model.{module}", "lora_down lora_up"),
    "BFL in PEFT": ("native", lambda module: f"base_model.model.{module}", "A.default B.default"),
    "clip": ("text_encoder", lambda module: f"text_encoder.{module}", "A B"),
    "clip, recent transformers": (
        "text_encoder",
        lambda module: f"text_encoder.{module.removeprefix('text_model.')}",
        "A B",
    ),
    "clip, kohya": ("text_encoder", kohya("lora_te1_"), "lora_down lora_up"),
    "clip, linear layer": (
        "text_encoder",
        lambda module: f"text_encoder.{module}",
        "lora_linear_layer.down lora_linear_layer.up",
    ),
    "clip, oldest diffusers": (
        "text_encoder",
        lambda module: "text_encoder." + re.sub(r"(q|k|v|out)_proj$", r"to_\1_lora", module),
        "down up",
    ),
    "LyCORIS, diffusers' names": ("diffusers", kohya("lycoris_"), "lora_down lora_up"),
    "t5": ("text_encoder_2", lambda module: f"text_encoder_2.{module}", "A B"),
    "t5, sd-scripts": ("text_encoder_2", kohya("lora_te3_"), "lora_down lora_up"),
    "t5, kohya": ("text_encoder_2", kohya("lora_te2_"), "lora_down lora_up"),
    "t5, ComfyUI": (
        "text_encoder_2",
        lambda module: f"text_encoders.t5xxl.transformer.{module}",
        "lora_down lora_up",
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(
    checkpoint: Checkpoint, tiny_checkpoint: Path, state: State, tmp_path: Path, spelling: str
) -> None:
    names, spell, style = SPELLINGS[spelling]
    if names == "diffusers":
        plain = factors(diffusers_linears(checkpoint))
        expected = reference(checkpoint, tiny_checkpoint, (plain, 0.5))
        tensors = factors(diffusers_linears(checkpoint), spell, style)
    else:
        networks = ("transformer", "modulation") if names == "native" else (names,)
        shapes = linears(checkpoint, *networks)
        tensors, plain = factors(shapes, spell, style), factors(shapes)
        expected = {name: {key: tensor.double() for key, tensor in state[name].items()} for name in networks}
        for network in networks:
            own = linears(checkpoint, network)
            add(
                expected[network],
                {key: value for key, value in plain.items() if key.rsplit(".lora_", 1)[0] in own},
                {},
                0.5,
            )
    fused, _ = fuse(checkpoint, state, (write(tmp_path / "a.safetensors", tensors), 0.5))
    assert_same(fused, expected)


def test_half_precision_factors_and_whole_differences(
    checkpoint: Checkpoint, tiny_checkpoint: Path, state: State, tmp_path: Path
) -> None:
    tensors = {
        name: tensor.bfloat16() if index % 2 else tensor.half()
        for index, (name, tensor) in enumerate(peft(checkpoint).items())
    }
    fused, _ = fuse(checkpoint, state, (write(tmp_path / "a.safetensors", tensors), 1))
    assert_same(fused, reference(checkpoint, tiny_checkpoint, (tensors, 1)))

    whole = {
        "diffusion_model.txt_in.diff": torch.ones(64, 48),
        "diffusion_model.img_in.diff_b": torch.ones(64),
    }
    fused, _ = fuse(checkpoint, state, (write(tmp_path / "b.safetensors", whole), 0.5))
    assert torch.equal(fused["transformer"]["txt_in.weight"], state["transformer"]["txt_in.weight"] + 0.5)
    assert torch.equal(fused["transformer"]["img_in.bias"], state["transformer"]["img_in.bias"] + 0.5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"r": 4, "lora_alpha": 8}, {"x_embedder": 2.0, "proj_out": 2.0}),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, {"x_embedder": 4.0, "proj_out": 4.0}),
        (
            {"r": 4, "lora_alpha": 8, "alpha_pattern": {"x_embedder": 6, "out": 3}, "rank_pattern": {}},
            {"x_embedder": 1.5, "proj_out": 2.0},
        ),
        (
            {"r": 2, "lora_alpha": 1, "alpha_pattern": {"^proj_out": 16}, "rank_pattern": {"(x|proj)_.*": 4}},
            {"x_embedder": 0.25, "proj_out": 4.0},
        ),
    ],
    ids=["common", "rank-stabilized", "patterns of names", "regular expressions"],
)
def test_alpha_from_the_metadata_that_diffusers_writes(
    checkpoint: Checkpoint, state: State, tmp_path: Path, settings: dict, expected: dict[str, float]
) -> None:
    tensors = {}
    for module in expected:
        tensors |= {
            f"{module}.lora_A.weight": torch.ones(4, 64),
            f"{module}.lora_B.weight": torch.ones(64, 4),
        }
    FluxKontextPipeline.save_lora_weights(
        tmp_path, transformer_lora_layers=dict(tensors), transformer_lora_adapter_metadata=settings
    )
    theirs = tmp_path / "pytorch_lora_weights.safetensors"
    bare = write(tmp_path / "b.safetensors", tensors, {"lora_adapter_metadata": json.dumps(settings)})
    for path in (theirs, bare):
        fused, _ = fuse(checkpoint, state, (path, 1))
        for module, native in (("x_embedder", "img_in"), ("proj_out", "final_layer.linear")):
            change = fused["transformer"][f"{native}.weight"] - state["transformer"][f"{native}.weight"]
            torch.testing.assert_close(change, torch.full((64, 64), 4 * expected[module]), atol=1e-4, rtol=0)


def test_tensors_win_over_metadata_and_whole_numbers_are_numbers(
    checkpoint: Checkpoint, state: State, tmp_path: Path
) -> None:
    tensors = factors({"img_in": (64, 64)}) | {"img_in.alpha": torch.tensor([3])}
    metadata = {"lora_adapter_metadata": json.dumps({"r": 1, "lora_alpha": 50})}
    fused, _ = fuse(checkpoint, state, (write(tmp_path / "a.safetensors", tensors, metadata), 1))
    change = 3 * tensors["img_in.lora_B.weight"] @ tensors["img_in.lora_A.weight"]
    torch.testing.assert_close(
        fused["transformer"]["img_in.weight"], state["transformer"]["img_in.weight"] + change
    )


def test_files_that_hold_everything_twice(checkpoint: Checkpoint, state: State, tmp_path: Path) -> None:
    tensors = {name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): tensor
               for name, tensor in peft_alphas(checkpoint).items() if "alpha" not in name}  # fmt: skip
    both = tensors | factors(
        linears(checkpoint, "transformer"), kohya("lora_unet_"), "lora_down lora_up", seed=3
    )
    once, _ = fuse(checkpoint, state, (write(tmp_path / "a.safetensors", tensors), 1))
    twice, files = fuse(checkpoint, state, (write(tmp_path / "b.safetensors", both), 1))
    assert_same(twice, {name: {key: value.double() for key, value in once[name].items()} for name in once})
    assert files[0].unmatched == []


def test_reading_opens_no_factor(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.safetensors", peft(checkpoint))
    shapes = {name: network.shapes for name, network in checkpoint.networks.items()}
    monkeypatch.setattr("kontext.model.safetensors_file.TensorInfo.read", lambda self: pytest.fail("read"))
    updates, _ = read_loras([(path, 1.0)], shapes, checkpoint.config)
    assert set(updates) == {"transformer", "modulation", "text_encoder"}


def test_partial(checkpoint: Checkpoint, state: State, tmp_path: Path) -> None:
    known = factors({"img_in": (64, 64)})
    other = factors({f"double_blocks.{i}.img_attn.proj": (64, 64) for i in (7, 8)})
    path = write(tmp_path / "a.safetensors", known | other)
    with pytest.raises(
        KontextError, match=r"4 of its 6 tensors.*double_blocks\.7\.img_attn.*, …\).*--lora-partial"
    ):
        fuse(checkpoint, state, (path, 1))
    _, files = fuse(checkpoint, state, (path, 1), partial=True)
    assert sorted(files[0].unmatched) == sorted(other)
    assert files[0].updates == 1
    path = write(tmp_path / "b.safetensors", other)
    with pytest.raises(KontextError, match="made for another model: none of its tensors"):
        fuse(checkpoint, state, (path, 1), partial=True)


@pytest.mark.parametrize("count", [3, 4])
def test_the_first_three_that_match_nothing_are_named(
    checkpoint: Checkpoint, state: State, tmp_path: Path, count: int
) -> None:
    other = dict(
        list(factors({f"double_blocks.{i}.img_attn.proj": (64, 64) for i in (7, 8)}).items())[:count]
    )
    path = write(tmp_path / "a.safetensors", factors({"img_in": (64, 64)}) | other)
    listed = ", ".join(sorted(other)[:3]) + ("" if count == 3 else ", …")
    message = f"{path}: {count} of its {count + 2} tensors match no weight of this model ({listed}); "
    with pytest.raises(KontextError, match="^" + re.escape(message)):
        fuse(checkpoint, state, (path, 1))


IMG_IN = factors({"img_in": (64, 64)})
DOWN, UP = IMG_IN
FAULTS: dict[str, tuple[Tensors, str]] = {
    "no LoRA": ({"img_in.weight": torch.ones(64, 64)}, "is not a LoRA: none of its 1 tensors"),
    "empty": ({}, "is not a LoRA"),
    "alpha alone": ({"img_in.alpha": torch.ones(())}, "is not a LoRA"),
    "no up": (
        {DOWN: IMG_IN[DOWN]},
        r"img_in.lora_A.weight has no lora_B \(lora_up\): the file is incomplete",
    ),
    "no down": (
        {UP: IMG_IN[UP]},
        r"img_in.lora_B.weight has no lora_A \(lora_down\): the file is incomplete",
    ),
    "bias without factors": (IMG_IN | {"txt_in.lora_B.bias": torch.ones(64)}, "txt_in.lora_B.bias has no"),
    "another width": (
        IMG_IN | {DOWN: torch.ones(1, 128)},
        r"made for another model: .* img_in.lora_A.weight is \[1, 128\], but img_in.weight \[64, 64\] needs",
    ),
    "another height": (IMG_IN | {UP: torch.ones(32, 1)}, r"lora_B.weight is \[32, 1\].*needs \[64, 1\]"),
    "two ranks": (IMG_IN | {UP: torch.ones(64, 2)}, r"lora_B.weight is \[64, 2\].*needs \[64, 1\]"),
    "flat": (IMG_IN | {DOWN: torch.ones(64)}, r"lora_A.weight is \[64\]"),
    "a scalar": (IMG_IN | {DOWN: torch.tensor(1.0)}, r"lora_A.weight is \[\]"),
    "another bias": (
        IMG_IN | {"img_in.lora_B.bias": torch.ones(3)},
        r"lora_B.bias is \[3\].*needs \[64\]",
    ),
    "another norm": (
        IMG_IN | {"single_blocks.0.norm.key_norm.scale": torch.ones(3)},
        r"key_norm.scale is \[3\].*needs \[32\]",
    ),
    "rank 0": ({DOWN: torch.ones(0, 64), UP: torch.ones(64, 0)}, "lora_A.weight has rank 0"),
    "alpha a vector": (IMG_IN | {"img_in.alpha": torch.ones(2)}, r"alpha has shape \[2\]"),
    "alpha NaN": (IMG_IN | {"img_in.alpha": torch.tensor(math.nan)}, "alpha of img_in is nan"),
    "whole numbers": (IMG_IN | {UP: IMG_IN[UP].int()}, "lora_B.weight is I32, expected one of F64, F32"),
    "a norm's LoKr": (
        IMG_IN | {"single_blocks.0.norm.key_norm.lokr_w1": torch.ones(8, 8)},
        "1 of its 3 tensors match no weight",
    ),
    "convolution": (
        {"lora_unet_conv_in.lora_down.weight": torch.ones(1, 4, 3, 3)},
        r"is a convolution LoRA \(LoCon\), which is not supported: tensor .* \[1, 4, 3, 3\]",
    ),
    "two adapters": (
        IMG_IN | {"img_in.lora_A.other.weight": torch.ones(1, 64)},
        "holds img_in twice: .*lora_A.*other",
    ),
    "two names": (
        IMG_IN | factors({"x_embedder": (64, 64)}),
        "changes img_in.weight twice, the second time by x_embedder",
    ),
    "a linear in full": (
        IMG_IN | {"txt_in.weight": torch.ones(64, 48)},
        "1 of its 3 tensors match no weight",
    ),
    "a norm's factors": (
        IMG_IN | factors({"single_blocks.0.norm.key_norm.scale": (32, 1)}),
        "2 of its 4 tensors match no weight",
    ),
    "a bias where there is none": (
        factors({"text_encoder_2.encoder.block.0.layer.0.SelfAttention.q": (48, 48)})
        | {"text_encoder_2.encoder.block.0.layer.0.SelfAttention.q.lora_B.bias": torch.ones(48)},
        "1 of its 3 tensors match no weight",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_one_clear_error(
    checkpoint: Checkpoint, state: State, tmp_path: Path, fault: str
) -> None:
    tensors, message = FAULTS[fault]
    path = write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(KontextError, match=message) as caught:
        fuse(checkpoint, state, (path, 1))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{", "lora_adapter_metadata is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"r": -4, "lora_alpha": 8}', "have rank 1, but its metadata says -4"),
        ('{"r": 1, "lora_alpha": "big"}', "alpha of img_in is 'big', expected a number"),
        ('{"r": "4\\n", "lora_alpha": 8}', r"have rank 1, but its metadata says '4\\n': "),
        ('{"r": 1, "lora_alpha": NaN}', "alpha of img_in is nan"),
        ('{"r": 1, "lora_alpha": 1e39}', r"the scale of img_in is 1e\+39, expected a number of fp32's range"),
        ('{"r": 1, "lora_alpha": true}', "alpha of img_in is True"),
        ('{"r": 1, "alpha_pattern": {"(": 2}}', "alpha_pattern in its metadata is not valid"),
        ('{"r": 1, "alpha_pattern": [2]}', "alpha_pattern in its metadata is not valid"),
    ],
)
def test_damaged_metadata(
    checkpoint: Checkpoint, state: State, tmp_path: Path, settings: str, message: str
) -> None:
    path = write(tmp_path / "a.safetensors", IMG_IN, {"lora_adapter_metadata": settings})
    with pytest.raises(KontextError, match=message):
        fuse(checkpoint, state, (path, 1))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [DOWN, UP])
def test_damaged_numbers_show_when_added(
    checkpoint: Checkpoint, state: State, tmp_path: Path, name: str, value: float
) -> None:
    tensors = {key: tensor.clone() for key, tensor in IMG_IN.items()}
    tensors[name][0, 0] = value
    path = write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(KontextError, match=f"tensor {name} holds NaN or infinity: the LoRA is damaged"):
        fuse(checkpoint, state, (path, 1))


def test_overflow_shows_when_added(checkpoint: Checkpoint, state: State, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {DOWN: torch.full((1, 64), 1e30), UP: torch.full((64, 1), 1e30)})
    with pytest.raises(KontextError, match=r"lora_B.weight at scale 1 overflows"):
        fuse(checkpoint, state, (path, 1))


def test_files_that_are_none(checkpoint: Checkpoint, state: State, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\x80\x04")
    (tmp_path / "a.safetensors").write_bytes(b"\x80\x04")
    for name, message in {
        "nowhere.safetensors": "does not exist",
        "a.bin": "is a pickle.*convert it",
        "a.safetensors": "is not a safetensors file",
    }.items():
        with pytest.raises(KontextError, match=message):
            fuse(checkpoint, state, (tmp_path / name, 1))


def test_steps_of_the_title(checkpoint: Checkpoint, state: State, tmp_path: Path) -> None:
    metadata = {"modelspec.title": "Turbo 4-step", "ss_steps": "8"}
    path = write(tmp_path / "a.safetensors", IMG_IN, metadata)
    steps = fuse(checkpoint, state, (path, 1))[1][0].steps
    assert steps is not None
    assert steps.count == 4
