"""What a tensor's name in a LoRA file says: which module it belongs to, and what it is to that module."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, cast

Role = Literal[
    "down", "up", "up_bias", "alpha", "scalar", "magnitude", "dora_scale",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
    "diff", "diff_b", "set_weight", "weight", "bias",
]  # fmt: skip
"""What a tensor is to its module.

down, up, up_bias: the factors of a low-rank update, and a bias that is trained with them.
alpha, scalar: what the update is multiplied by.
magnitude, dora_scale: DoRA's, as PEFT and as LyCORIS apply it.
hada_…, lokr_…: the factors of LoHa and LoKr.
diff, diff_b: differences of weight and bias in full, also of norms (LyCORIS's w_norm and b_norm).
set_weight: replaces the weight. weight, bias: the same, where the file's settings say so or for the model's norms.
"""

TENSOR_NAME = re.compile(
    r"(?P<module>.+?)\.(?:"
    r"(?P<down>(?:lora_A(?:\.[^.]+)?|lora_down|(?:lora\.|lora_linear_layer\.)?down)\.weight|lora_A)|"
    r"(?P<up>(?:lora_B(?:\.[^.]+)?|lora_up|(?:lora\.|lora_linear_layer\.)?up)\.weight|lora_B)|"
    r"(?P<up_bias>lora_B(?:\.[^.]+)?\.bias)|"
    r"(?P<magnitude>lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?)|"
    r"(?P<factor>hada_w[12]_[ab]|lokr_w[12](?:_[ab])?)(?:\.[^.]+)?|"
    r"(?P<diff>diff|w_norm)|(?P<diff_b>diff_b|b_norm)|"
    r"(?P<alpha>alpha)|(?P<scalar>scalar)|(?P<dora_scale>dora_scale)|(?P<set_weight>set_weight)|"
    r"(?P<weight>weight|scale)|(?P<bias>bias))"
)
"""PEFT writes lora_A, with or without the adapter's name after it; kohya lora_down; old diffusers lora.down and
lora_linear_layer.down; XLabs only down, after a module name that ends in _lora."""

OTHER_KINDS = {
    r"lora_mid.*|hada_t[12]|lokr_t[12]": "a convolution LoRA (LoCon)",
    r"boft_.*": "a BOFT (butterfly orthogonal)",
    r"oft_.*": "an OFT or BOFT (orthogonal)",
    r"[ab][12]\.weight|bm\.weight|glora_.*": "a GLoRA (generalized)",
    r"ia3_.*|on_input": "an IA3 (rescaled activations)",
    r"lora_embedding_[AB].*": "a LoRA of embeddings",
    r"lora_E|ranknum": "an AdaLoRA",
    r"lambda_layer|[pq]_layer\.weight": "a T-LoRA",
    r"vera_.*": "a VeRA",
    r"vblora_.*": "a VB-LoRA",
    r"fourierft_.*": "a FourierFT",
    r"waveft_.*": "a WaveFT",
    r"hra_u.*": "an HRA",
    r"randlora_.*": "a RandLoRA",
    r"road_theta.*|road_alpha.*": "a RoAd",
    r"c3a_.*": "a C3A",
    r"shira_.*": "a SHiRA",
    r"(?:miss_block|bone_).*": "a MiSS (Bone)",
    r"delora_.*": "a DeLoRA",
    r"gralora_.*": "a GraLoRA",
    r"hira_.*": "a HiRA",
    r"reshape_weight": "a LoRA that widens its model's input (a control LoRA)",
}
"""The end of a tensor's name, which is its part after a dot → the kind of adapter, which is not W + an update."""

OTHER_KIND = re.compile("|".join(rf"(?:(?:^|.*\.)(?P<k{i}>{mark}))" for i, mark in enumerate(OTHER_KINDS)))


def split_name(tensor: str) -> tuple[str, Role] | None:
    """A tensor's name → its module, with prefix, and its role; None if it has no known ending."""
    match = TENSOR_NAME.fullmatch(tensor)
    if match is None:
        return None
    role = match["factor"] or str(match.lastgroup)
    return match["module"], cast(Role, role)


def other_kind(tensor: str) -> str | None:
    """The kind of adapter that a tensor belongs to, if it is one that cannot be fused."""
    match = OTHER_KIND.fullmatch(tensor)
    return list(OTHER_KINDS.values())[int(str(match.lastgroup)[1:])] if match else None


def is_lora(names: Iterable[str]) -> bool:
    """Whether tensors of these names are an adapter, of any kind, and not a model's weights."""
    for name in names:
        split = split_name(name)
        if other_kind(name) or (split and split[1] not in ("weight", "bias", "alpha", "scalar")):
            return True
    return False
