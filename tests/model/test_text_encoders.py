"""The text encoders against transformers' CLIPTextModel and T5EncoderModel with the same weights."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from kontext.model.config import ClipConfig, T5Config  # noqa: E402
from kontext.model.text_encoders import (  # noqa: E402
    ClipTextEncoder,
    T5Encoder,
    relative_buckets,
)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("eos_id", [2, 97], ids=["highest id", "eos 97"])
def test_clip_is_transformers(activation, eos_id) -> None:
    torch.manual_seed(1)
    config = transformers.CLIPTextConfig(
        vocab_size=100,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        hidden_act=activation,
        bos_token_id=98,
        eos_token_id=eos_id,
    )
    theirs = transformers.CLIPTextModel(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = ClipTextEncoder(ClipConfig(100, 48, 80, 3, 4, activation=activation, eos_id=eos_id)).eval()
    state = {
        f"text_model.{key.removeprefix('text_model.')}": value for key, value in theirs.state_dict().items()
    }
    state.pop("text_model.embeddings.position_ids", None)
    ours.load_state_dict(state)
    ids = torch.randint(0, 97, (3, 77), generator=torch.Generator().manual_seed(0))
    end = 99 if eos_id == 2 else eos_id
    for row, length in enumerate((4, 30, 77)):
        ids[row, length - 1 :] = end
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).pooler_output, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("length", "max_distance"), [(24, 128), (300, 128), (40, 32)])
def test_t5_is_transformers(length, max_distance) -> None:
    torch.manual_seed(2)
    config = transformers.T5Config(
        vocab_size=90,
        d_model=48,
        d_kv=12,
        d_ff=64,
        num_layers=3,
        num_heads=5,
        feed_forward_proj="gated-gelu",
        relative_attention_max_distance=max_distance,
    )
    theirs = transformers.T5EncoderModel(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ours = T5Encoder(T5Config(90, 48, 12, 64, 3, 5, 32, max_distance, max_length=length)).eval()
    state = {key: value for key, value in theirs.state_dict().items() if key != "encoder.embed_tokens.weight"}
    ours.load_state_dict(state)
    ids = torch.randint(0, 90, (2, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).last_hidden_state, atol=1e-4, rtol=0)


def test_buckets_by_hand() -> None:
    """32 buckets: half for each direction; up to distance 7 exact, then logarithmic up to 128."""
    row = relative_buckets(200, 32, 128)[0]  # query 0, keys 0…199
    assert row[:8].tolist() == [0, *range(17, 24)]
    assert row[8].item() == 24
    assert row[127].item() == row[199].item() == 31
    assert relative_buckets(200, 32, 128)[199, 0].item() == 15


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="relu"):
        ClipTextEncoder(ClipConfig(activation="relu"))
