"""bitsandbytes' NF4 and FP4, written and dequantized by bitsandbytes itself on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
bnb = pytest.importorskip("bitsandbytes")

from kontext.errors import KontextError  # noqa: E402
from kontext.model.weight_files import open_weight_file  # noqa: E402


def quantized(shape, kind="nf4", nested=False, blocksize=64, dtype=torch.bfloat16):
    """The tensors beside and with a weight, and bitsandbytes' dequantization in fp32."""
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(shape, generator=generator).to(dtype)
    packed, state = bnb.functional.quantize_4bit(
        weight, blocksize=blocksize, quant_type=kind, compress_statistics=nested
    )
    tensors = {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    state.dtype = torch.float32
    return {"weight": packed, **tensors}, bnb.functional.dequantize_4bit(packed, state)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("shape", "blocksize"), [((96, 128), 64), ((40, 30), 128), ((600, 64), 64)])
def test_bitsandbytes(kind, nested, shape, blocksize, stored) -> None:
    tensors, expected = quantized(shape, kind, nested, blocksize)
    read = stored(tensors)
    assert (read.shape, read.dtype) == (shape, f"bitsandbytes {kind.upper()}")
    assert torch.equal(read.read(), expected.reshape(shape))


def test_the_layer_of_bitsandbytes(stored) -> None:
    """The names that its Linear saves under."""
    layer = bnb.nn.Linear4bit(64, 32, bias=False, quant_type="nf4", compress_statistics=True)
    layer = layer.to("cpu")
    layer(torch.zeros(1, 64))  # quantizes
    state = layer.state_dict()
    if not any("quant_state" in name for name in state):
        pytest.skip("this version does not quantize on the CPU")
    expected = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert torch.equal(stored(state).read().to(expected.dtype), expected)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_what_transformers_saves(kind, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    torch.manual_seed(1)
    config = transformers.T5Config(
        vocab_size=90,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=1,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    transformers.T5EncoderModel(config).save_pretrained(tmp_path / "plain")
    how = {
        "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
        "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        "int8": {"load_in_8bit": True},
    }[kind]
    quantization = transformers.BitsAndBytesConfig(**how)
    model = transformers.T5EncoderModel.from_pretrained(
        tmp_path / "plain", quantization_config=quantization, device_map="cpu", dtype=torch.bfloat16
    )
    model.save_pretrained(tmp_path / kind)
    read = open_weight_file(tmp_path / kind / "model.safetensors").tensors
    plain = open_weight_file(tmp_path / "plain/model.safetensors").tensors
    assert {name: info.shape for name, info in read.items()} == {
        name: info.shape for name, info in plain.items()
    }
    linears = {name: module for name, module in model.named_modules() if f"{name}.weight" in read}
    decoded = 0
    for name, module in linears.items():
        weight = module.weight
        if read[f"{name}.weight"].dtype.startswith("bitsandbytes"):
            decoded += 1
            expected = (
                bnb.functional.int8_vectorwise_dequant(weight.data, weight.SCB)
                if kind == "int8"
                else bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
            )
            assert torch.equal(read[f"{name}.weight"].read().to(expected.dtype), expected)
    assert decoded == 6  # q, k, v, o, wi_0 and wi_1; transformers keeps wo in 16 or 32 bits


STATE = "weight.quant_state.bitsandbytes__nf4"


def edit_state(tensors, **keys):
    state = json.loads(bytes(tensors[STATE].tolist()))
    state = {key: value for key, value in {**state, **keys}.items() if value is not None}
    tensors[STATE] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


FAULTS = {
    "no state": (lambda t: t.pop(STATE), "with 0 of bitsandbytes' quant_state"),
    "no absmax": (lambda t: t.pop("weight.absmax"), "m.weight.absmax is missing"),
    "fp32 absmax": (
        lambda t: t.update({"weight.absmax": torch.ones(192)}),
        r"absmax is F32 \[192\], expected U8",
    ),
    "short weight": (
        lambda t: t.update(weight=torch.ones(9, 1, dtype=torch.uint8)),
        "expected U8 of 6144 bytes",
    ),
    "another shape": (lambda t: edit_state(t, shape=[96, 64]), "expected U8 of 3072 bytes"),
    "huge shape": (lambda t: edit_state(t, shape=[1 << 40, 1 << 40]), "is damaged"),
    "no shape": (lambda t: edit_state(t, shape="x"), "is damaged"),
    "another type": (lambda t: edit_state(t, quant_type="fp4"), "is damaged"),
    "block size 0": (lambda t: edit_state(t, blocksize=0), "is damaged"),
    "offset": (lambda t: edit_state(t, nested_offset=float("inf")), "is damaged"),
    "a key more": (lambda t: edit_state(t, bits=3), "has keys that it should not, or lacks them: bits"),
    "a key less": (lambda t: edit_state(t, nested_offset=None), "or lacks them: nested_offset"),
    "a scale": (lambda t: t.update(weight_scale=torch.ones(())), "does not belong to bitsandbytes' NF4"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault, stored) -> None:
    change, message = FAULTS[fault]
    tensors, _ = quantized((96, 128), nested=True)
    change(tensors)
    with pytest.raises(KontextError, match=message):
        stored(tensors)
