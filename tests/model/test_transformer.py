"""The transformer and its modulation against diffusers' FluxTransformer2DModel with the same weights."""

from __future__ import annotations

from functools import cache

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from diffusers import FluxTransformer2DModel  # noqa: E402

from kontext.model.config import TransformerConfig  # noqa: E402
from kontext.model.diffusers_format import modulation_sources, transformer_sources  # noqa: E402
from kontext.model.rope import position_ids, rope_tables  # noqa: E402
from kontext.model.transformer import (  # noqa: E402
    Modulation,
    Transformer,
    within_fp16,
)

CONFIGS = {
    "narrow": TransformerConfig(
        hidden_size=64,
        num_heads=2,
        num_double_blocks=1,
        num_single_blocks=2,
        axes_dim=(8, 12, 12),
        text_dim=24,
        pooled_dim=20,
    ),
    "deep": TransformerConfig(
        hidden_size=144,
        num_heads=3,
        num_double_blocks=3,
        num_single_blocks=4,
        axes_dim=(8, 20, 20),
        text_dim=40,
        pooled_dim=16,
    ),
    "no guidance": TransformerConfig(
        hidden_size=32,
        num_heads=1,
        num_double_blocks=2,
        num_single_blocks=1,
        axes_dim=(4, 14, 14),
        text_dim=24,
        pooled_dim=20,
        guidance_embed=False,
    ),
}
TEXT_TOKENS = 7


@cache
def pair(name: str):
    """diffusers' model and ours with its weights."""
    config = CONFIGS[name]
    torch.manual_seed(3)
    theirs = FluxTransformer2DModel(
        patch_size=1,
        in_channels=config.in_channels,
        num_layers=config.num_double_blocks,
        num_single_layers=config.num_single_blocks,
        attention_head_dim=config.head_dim,
        num_attention_heads=config.num_heads,
        joint_attention_dim=config.text_dim,
        pooled_projection_dim=config.pooled_dim,
        guidance_embeds=config.guidance_embed,
        axes_dims_rope=config.axes_dim,
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    state = theirs.state_dict()
    ours, modulation = Transformer(config).eval(), Modulation(config).eval()
    used: set[str] = set()
    for module, sources in ((ours, transformer_sources(config)), (modulation, modulation_sources(config))):
        module.load_state_dict({key: source.assemble(state.__getitem__) for key, source in sources.items()})
        used.update(part for source in sources.values() for part in source.parts)
    assert used == set(state)
    return theirs, ours, modulation


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("target", "references"), [((4, 6), []), ((8, 8), [(4, 6)]), ((3, 5), [(6, 2), (5, 5)])], ids=str
)
def test_velocity_is_diffusers(name, batch, target, references) -> None:
    theirs, ours, modulation = pair(name)
    config = CONFIGS[name]
    generator = torch.Generator().manual_seed(batch)
    counts = [height * width for height, width in (target, *references)]
    image = torch.randn(batch, sum(counts), config.in_channels, generator=generator)
    text = torch.randn(batch, TEXT_TOKENS, config.text_dim, generator=generator)
    pooled = torch.randn(batch, config.pooled_dim, generator=generator)
    timestep = torch.rand(batch, generator=generator)
    guidance = torch.full((batch,), 2.5)
    image_ids = torch.cat([position_ids(i, *size) for i, size in enumerate((target, *references))])
    ids = torch.cat([torch.zeros(TEXT_TOKENS, 3, dtype=torch.float64), image_ids])
    with torch.no_grad():
        velocity = ours(
            image[:, : counts[0]],
            image[:, counts[0] :],
            text,
            *rope_tables(ids, config.axes_dim, config.theta),
            *modulation(timestep, guidance, pooled),
        )
        expected = theirs(
            hidden_states=image,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=timestep,
            guidance=guidance if config.guidance_embed else None,
            img_ids=image_ids.float(),
            txt_ids=torch.zeros(TEXT_TOKENS, 3),
            return_dict=False,
        )[0][:, : counts[0]]
    assert expected.std() > 0.3
    torch.testing.assert_close(velocity, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("block", ["double", "single"])
def test_fp16_is_clipped_where_diffusers_clips(block: str) -> None:
    """Gates of 60000 take a stream out of fp16's range, as FLUX's weights do: both clip it, to 65504."""
    from copy import deepcopy

    theirs, ours, modulation = (deepcopy(module).half() for module in pair("deep"))
    config = CONFIGS["deep"]
    hidden, last = config.hidden_size, config.num_single_blocks - 1
    gates, biases = {
        # The gate of the text's MLP, and the bias of what it multiplies.
        "double": (
            (modulation.double_blocks[0].txt_mod.lin, theirs.transformer_blocks[0].norm1_context.linear),
            (ours.double_blocks[0].txt_mlp[2], theirs.transformer_blocks[0].ff_context.net[2]),
        ),
        "single": (
            (
                modulation.single_blocks[last].modulation.lin,
                theirs.single_transformer_blocks[last].norm.linear,
            ),
            (ours.single_blocks[last].linear2, theirs.single_transformer_blocks[last].proj_out),
        ),
    }[block]
    with torch.no_grad():
        for linear in gates:
            linear.bias[-hidden:] = 6e4
        for linear in biases:
            linear.bias += 2
    seen = []
    watched = ours.double_blocks[0] if block == "double" else ours.single_blocks[last]
    watched.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(1, 24, config.in_channels, generator=generator).half()
    text = torch.randn(1, TEXT_TOKENS, config.text_dim, generator=generator).half()
    pooled = torch.randn(1, config.pooled_dim, generator=generator).half()
    timestep, guidance = torch.full((1,), 0.5), torch.full((1,), 2.5)  # diffusers rounds them to fp16
    ids = torch.cat([torch.zeros(TEXT_TOKENS, 3, dtype=torch.float64), position_ids(0, 4, 6)])
    with torch.no_grad():
        velocity = ours(
            image,
            image[:, :0],
            text,
            *rope_tables(ids, config.axes_dim, config.theta),
            *modulation(timestep, guidance, pooled),
        )
        expected = theirs(
            hidden_states=image,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=timestep,
            guidance=guidance,
            img_ids=ids[TEXT_TOKENS:].float(),
            txt_ids=torch.zeros(TEXT_TOKENS, 3),
            return_dict=False,
        )[0]
    stream = seen[0][1] if block == "double" else seen[0]
    assert stream.abs().max() == 65504
    assert expected.isfinite().all()
    assert (velocity - expected).float().norm() < 0.01 * expected.float().norm()


def test_only_fp16_is_clipped() -> None:
    values = torch.tensor([float("inf"), -7e4, 1.0, float("nan")])
    assert within_fp16(values.half()).tolist()[:3] == [65504, -65504, 1]
    assert within_fp16(values.half()).isnan().tolist() == [False, False, False, True]
    for dtype in (torch.float32, torch.bfloat16):
        wide = values.to(dtype)
        assert within_fp16(wide) is wide


def test_modulation_rows_are_independent() -> None:
    """All steps at once are what they are one by one: the runtime computes a whole edit's modulations in one
    call."""
    _, _, modulation = pair("narrow")
    timestep, guidance = torch.tensor([1.0, 0.6, 0.1]), torch.full((3,), 2.5)
    pooled = torch.randn(1, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = modulation(timestep, guidance, pooled.expand(3, -1))
        for row in range(3):
            alone = modulation(timestep[row : row + 1], guidance[:1], pooled)
            for whole, part in zip(together, alone, strict=True):
                torch.testing.assert_close(whole[row : row + 1], part, atol=1e-5, rtol=0)


def test_wrong_rope_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="axes_dim"):
        Transformer(TransformerConfig(hidden_size=64, num_heads=2, axes_dim=(16, 56, 56)))
