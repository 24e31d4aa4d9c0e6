"""Norms as ComfyUI saves them, and CLIP as OpenAI does: in files, GGUF, `inspect` and linked bundles."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

from kontext.errors import KontextError  # noqa: E402
from kontext.model.checkpoint import Checkpoint, Origin, load_state  # noqa: E402
from kontext.model.config import ClipConfig  # noqa: E402
from kontext.model.safetensors_file import TensorInfo  # noqa: E402
from kontext.model.spellings import Rows, rows_of  # noqa: E402
from kontext.model.text_encoders import ClipTextEncoder  # noqa: E402

State = dict[str, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def state(tiny_checkpoint: Path) -> State:
    return load_state(tiny_checkpoint)


def comfy_transformer(state: State, prefix: str = "") -> dict[str, torch.Tensor]:
    """As ComfyUI's ModelSave since February 2026."""
    tensors = {**state["modulation"], **state["transformer"]}
    return {
        prefix + (name.removesuffix("scale") + "weight" if name.endswith("_norm.scale") else name): tensor
        for name, tensor in tensors.items()
    }


def same(first: State, second: State, *networks: str) -> bool:
    return all(
        first[name].keys() == second[name].keys()
        and all(torch.equal(first[name][key], second[name][key]) for key in first[name])
        for name in networks
    )


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_norms(prefix: str, state: State, tiny_checkpoint: Path, tmp_path: Path) -> None:
    tensors = comfy_transformer(state, prefix)
    assert sum(name.endswith("_norm.weight") for name in tensors) == 8
    save_file(tensors, tmp_path / "flux.safetensors")
    read = load_state(Origin(tmp_path / "flux.safetensors", base=tiny_checkpoint))
    assert same(read, state, "transformer", "modulation")


def test_norms_in_gguf(state: State, tiny_checkpoint: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "flux.gguf", "flux")
    for name, tensor in comfy_transformer(state).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = load_state(Origin(tmp_path / "flux.gguf", base=tiny_checkpoint))
    assert same(read, state, "transformer", "modulation")


def test_norms_under_both_names(state: State, tiny_checkpoint: Path, tmp_path: Path) -> None:
    tensors = comfy_transformer(state)
    norm = "double_blocks.0.img_attn.norm.query_norm"
    save_file({**tensors, f"{norm}.scale": tensors[f"{norm}.weight"].clone()}, tmp_path / "flux.safetensors")
    with pytest.raises(KontextError, match=f"holds {norm}.scale twice, the second time as {norm}.weight"):
        Checkpoint.open(Origin(tmp_path / "flux.safetensors", base=tiny_checkpoint))


class OpenAiBlock(nn.Module):
    """OpenAI's ResidualAttentionBlock; its attention is PyTorch's own."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, hidden))
        self.mlp.add_module("c_proj", nn.Linear(hidden, width))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        h = self.mlp.c_fc(self.ln_2(x))
        return x + self.mlp.c_proj(h * torch.sigmoid(1.702 * h))


class OpenAiText(nn.Module):
    """The text half of OpenAI's CLIP, before its projection."""

    def __init__(self, vocab: int, width: int, hidden: int, layers: int, heads: int, length: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab, width)
        self.positional_embedding = nn.Parameter(torch.empty(length, width))
        self.positional_embedding_res = self.positional_embedding
        if length > 77:
            self.positional_embedding_res = nn.Parameter(torch.empty(length, width))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.Sequential(
            *(OpenAiBlock(width, heads, hidden) for _ in range(layers))
        )
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, width))
        self.logit_scale = nn.Parameter(torch.ones([]))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        first = (torch.arange(ids.shape[1]) < 20)[:, None]  # LongCLIP's masks
        positions = self.positional_embedding * first + self.positional_embedding_res * ~first
        x = self.token_embedding(ids) + positions
        x = self.ln_final(self.transformer.resblocks(x))
        return x[torch.arange(len(ids)), ids.argmax(-1)]


@pytest.fixture(scope="module", params=[77, 248], ids=["CLIP", "LongCLIP"])
def openai(request: pytest.FixtureRequest) -> OpenAiText:
    torch.manual_seed(3)
    model = OpenAiText(600, 32, 64, layers=2, heads=2, length=request.param).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("prefix", ["", "cond_stage_model.model."])
def test_openai_clip(
    prefix: str, openai: OpenAiText, state: State, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    length = len(openai.positional_embedding)
    tensors = {prefix + name: tensor for name, tensor in openai.state_dict().items()}
    if length == 77:
        del tensors[f"{prefix}positional_embedding_res"]
    # The vision tower has the same blocks; TorchScript archives store sizes as tensors.
    tensors |= {
        f"{prefix}visual.{name}": tensor.clone() for name, tensor in openai.transformer.state_dict().items()
    }
    tensors |= {f"{prefix}visual.ln_post.weight": torch.ones(32), f"{prefix}context_length": torch.tensor(77)}
    save_file(tensors, tmp_path / "clip.safetensors")
    save_file({**state["modulation"], **state["transformer"]}, tmp_path / "flux.safetensors")
    files = {"text_encoder": tmp_path / "clip.safetensors"}
    checkpoint = Checkpoint.open(Origin(tmp_path / "flux.safetensors", files, tiny_checkpoint))
    network = checkpoint.networks["text_encoder"]
    ours = ClipTextEncoder(ClipConfig(600, 32, 64, num_layers=2, num_heads=2, max_length=length, eos_id=599))
    ours.load_state_dict({name: network.read(name) for name in network.shapes})
    ids = torch.randint(0, 599, (3, length), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = ids[0, 30] = 599
    ids[0, 31:] = 0
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), openai(ids), atol=1e-5, rtol=0)
    assert checkpoint.ignored["text_encoder"] == {
        "vision tower": 25, "projections": 1, "logit scale": 1, "sizes": 1
    }  # fmt: skip
    # Thirds of a plain tensor are read, and can be linked, where they are.
    parts = [name for name, info in network.files.items() if not isinstance(info, TensorInfo)]
    assert parts == ([] if length == 77 else ["text_model.embeddings.position_embedding.weight"])


@pytest.mark.parametrize("shape", [(77, 32), (20, 32), (248,)])
def test_tables_of_positions_that_do_not_fit(shape, tiny_checkpoint: Path, tmp_path: Path) -> None:
    tensors = {"positional_embedding": torch.ones(248, 32), "positional_embedding_res": torch.ones(shape)}
    save_file({**tensors, "ln_final.weight": torch.ones(32)}, tmp_path / "clip.safetensors")
    origin = Origin(
        tmp_path / "clip.safetensors", {"text_encoder": tmp_path / "clip.safetensors"}, tiny_checkpoint
    )
    with pytest.raises(KontextError, match=r"positional_embedding_res are F32 .* expected two tables alike"):
        Checkpoint.open(origin)


def test_attention_that_has_no_thirds(openai: OpenAiText, tiny_checkpoint: Path, tmp_path: Path) -> None:
    tensors = openai.state_dict() | {"transformer.resblocks.0.attn.in_proj_weight": torch.ones(95, 32)}
    tensors["positional_embedding_res"] = torch.ones_like(openai.positional_embedding)
    save_file(tensors, tmp_path / "clip.safetensors")
    origin = Origin(
        tmp_path / "clip.safetensors", {"text_encoder": tmp_path / "clip.safetensors"}, tiny_checkpoint
    )
    with pytest.raises(
        KontextError, match=r"in_proj_weight is \[95, 32\], expected three times as many rows"
    ):
        Checkpoint.open(origin)


@pytest.mark.parametrize("shape", [(6,), (6, 4), (6, 2, 3)])
def test_rows(shape, tmp_path: Path) -> None:
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape).to(torch.bfloat16)
    save_file({"a": torch.ones(3), "b": tensor}, tmp_path / "a.safetensors")
    from kontext.model.weight_files import open_weight_file

    whole = open_weight_file(tmp_path / "a.safetensors").tensors["b"]
    for part in (rows_of(whole, 2, 4), Rows(whole, 2, 4)):
        assert part.shape == (2, *shape[1:])
        assert torch.equal(part.read(), load_file(tmp_path / "a.safetensors")["b"][2:4])
