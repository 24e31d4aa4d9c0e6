"""How far a layer's own error reaches the velocity, by kind of layer, measured on the embedded model.

`sensitivity.gains_of` of a report of `kontext-export sensitivity --formats int4:0 --calibrate none` on four edits. A
larger model of the same architecture is assumed to behave alike; nothing says that it does.
"""

from __future__ import annotations

GAINS: dict[str, float] = {
    "text_encoder/text_model.encoder.layers.self_attn.q_proj.weight": 4.6e-05,
    "text_encoder/text_model.encoder.layers.self_attn.k_proj.weight": 4e-05,
    "text_encoder/text_model.encoder.layers.self_attn.v_proj.weight": 0.00092,
    "text_encoder/text_model.encoder.layers.self_attn.out_proj.weight": 0.00088,
    "text_encoder/text_model.encoder.layers.mlp.fc1.weight": 0.00024,
    "text_encoder/text_model.encoder.layers.mlp.fc2.weight": 0.00053,
    "text_encoder_2/encoder.block.layer.0.SelfAttention.q.weight": 0.0003,
    "text_encoder_2/encoder.block.layer.0.SelfAttention.k.weight": 0.00071,
    "text_encoder_2/encoder.block.layer.0.SelfAttention.v.weight": 0.0015,
    "text_encoder_2/encoder.block.layer.0.SelfAttention.o.weight": 0.0017,
    "text_encoder_2/encoder.block.layer.1.DenseReluDense.wi_0.weight": 0.00048,
    "text_encoder_2/encoder.block.layer.1.DenseReluDense.wi_1.weight": 0.00049,
    "text_encoder_2/encoder.block.layer.1.DenseReluDense.wo.weight": 0.0024,
    "modulation/double_blocks.img_mod.lin.weight": 0.072,
    "modulation/double_blocks.txt_mod.lin.weight": 0.0022,
    "modulation/single_blocks.modulation.lin.weight": 0.065,
    "transformer/double_blocks.img_attn.qkv.weight": 0.04,
    "transformer/double_blocks.img_attn.proj.weight": 0.053,
    "transformer/double_blocks.txt_attn.qkv.weight": 0.0098,
    "transformer/double_blocks.txt_attn.proj.weight": 0.00084,
    "transformer/double_blocks.img_mlp.0.weight": 0.023,
    "transformer/double_blocks.img_mlp.2.weight": 0.015,
    "transformer/double_blocks.txt_mlp.0.weight": 0.00082,
    "transformer/double_blocks.txt_mlp.2.weight": 0.001,
    "transformer/single_blocks.linear1.weight": 0.36,
    "transformer/single_blocks.linear2.weight": 0.16,
}
"""Kind → energy of the velocity's error per relative energy of the layer's own, summed over the layers of the kind."""
