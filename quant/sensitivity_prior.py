"""How much of a layer's error reaches the velocity, by kind of layer: the default for models that were not measured.

Measured on the embedded model: `sensitivity.measured_prior` of a report of `kontext-export sensitivity --formats int4:0
--calibrate none` on eight edits. A larger model of the same architecture is assumed to behave alike; that was not
tested.
"""

from __future__ import annotations

SENSITIVITY_PRIOR: dict[str, float] = {
    "text_encoder/text_model.encoder.layers.self_attn.q_proj.weight": 7.4e-06,
    "text_encoder/text_model.encoder.layers.self_attn.k_proj.weight": 2.5e-06,
    "text_encoder/text_model.encoder.layers.self_attn.v_proj.weight": 0.0005,
    "text_encoder/text_model.encoder.layers.self_attn.out_proj.weight": 0.00046,
    "text_encoder/text_model.encoder.layers.mlp.fc1.weight": 0.00029,
    "text_encoder/text_model.encoder.layers.mlp.fc2.weight": 0.00053,
    "text_encoder_2/encoder.block.layer.0.SelfAttention.q.weight": 0.00013,
    "text_encoder_2/encoder.block.layer.0.SelfAttention.k.weight": 6.2e-05,
    "text_encoder_2/encoder.block.layer.0.SelfAttention.v.weight": 0.00074,
    "text_encoder_2/encoder.block.layer.0.SelfAttention.o.weight": 0.00037,
    "text_encoder_2/encoder.block.layer.1.DenseReluDense.wi_0.weight": 0.00035,
    "text_encoder_2/encoder.block.layer.1.DenseReluDense.wi_1.weight": 0.00028,
    "text_encoder_2/encoder.block.layer.1.DenseReluDense.wo.weight": 0.0016,
    "modulation/double_blocks.img_mod.lin.weight": 0.051,
    "modulation/double_blocks.txt_mod.lin.weight": 0.012,
    "modulation/single_blocks.modulation.lin.weight": 0.17,
    "transformer/double_blocks.img_attn.qkv.weight": 0.057,
    "transformer/double_blocks.img_attn.proj.weight": 0.068,
    "transformer/double_blocks.txt_attn.qkv.weight": 0.012,
    "transformer/double_blocks.txt_attn.proj.weight": 0.002,
    "transformer/double_blocks.img_mlp.0.weight": 0.033,
    "transformer/double_blocks.img_mlp.2.weight": 0.016,
    "transformer/double_blocks.txt_mlp.0.weight": 0.0031,
    "transformer/double_blocks.txt_mlp.2.weight": 0.0033,
    "transformer/single_blocks.linear1.weight": 0.81,
    "transformer/single_blocks.linear2.weight": 0.33,
}
"""Kind → energy of the velocity's error over the relative energy of the layer's error, summed over the kind's
layers."""
