"""Rewrites a graph that OpenVINO has read into the form that it compiles well, before it is compiled.

- 16-bit floats become fp32. What a graph computes in is then `INFERENCE_PRECISION_HINT` alone. OpenVINO 2026.4 gives
  NaN for fp16 graphs on some processors, keeps 4-bit weights packed only if their scales are not bf16, and rounds
  norms and residuals of bf16 graphs once more: 44.2 instead of 45.6 dB of the embedded model's velocity.
- Weights stay as they are stored, 16-bit ones before a Convert that OpenVINO folds into the product.
- NF4 codes become OpenVINO's own NF4 type, which its kernels unpack as they multiply. As we write them they are
  unpacked when the graph is compiled.
- BitShift is refused: OpenVINO 2026.4 makes it a division of bytes, which its CPU kernel rounds to the nearest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as operators

from ....errors import KontextError

HALF = (ov.Type.f16, ov.Type.bf16)

SMALL = 1 << 16
"""Bytes up to which a 16-bit constant is copied as fp32."""

DECOMPRESSION = "decompression_0"
"""OpenVINO's mark of a Convert that is not folded into its constant. Without it, a graph with 207 MB of bf16 weights
took 636 MB once compiled, and with it 60 MB."""

PRODUCTS = ("MatMul", "Convolution", "Transpose")
"""Consumers of weights that may be large."""

NF4 = np.array(
    [
        *(-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
    ],
    np.float32,
)
"""The values of OpenVINO's NF4, which are those of bitsandbytes (QLoRA, https://arxiv.org/abs/2305.14314)."""


def rewrite(model: ov.Model) -> None:
    """Rewrites `model` in place.

    Raises:
        KontextError: it shifts bytes in a way that this module does not know and OpenVINO computes wrongly.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Gather":
            pack_nf4(node)
    for node in model.get_ordered_ops():
        kind, dtype = node.get_type_name(), node.get_output_element_type(0) if node.outputs() else None
        if kind == "Divide" and dtype == ov.Type.u8:
            raise KontextError(
                f"{node.get_friendly_name()} shifts bytes, which OpenVINO computes wrongly: export the "
                "bundle again, or use --backend onnxruntime"
            )
        if dtype in HALF and kind == "Constant":
            widen_constant(node)
        elif dtype in HALF and kind == "Convert":
            replace(node.output(0), widened(node.input_value(0)))
    model.validate_nodes_and_infer_types()


def replace(old: Any, new: Any) -> None:
    """Connects what uses the output `old` to `new`, but not `new`'s own node."""
    for target in old.get_target_inputs():
        if target.get_node() != new.get_node():
            target.replace_source_output(new)


def widened(value: Any) -> Any:
    """An output as fp32. Other 16-bit outputs than those of constants become fp32 by themselves."""
    if value.get_element_type() in (ov.Type.f32, *HALF):
        return value
    return operators.convert(value, "f32").output(0)


def widen_constant(node: Any) -> None:
    """Makes a 16-bit constant fp32: as a copy if it is small or no weight, else by a Convert behind it, which after a
    Gather stands behind that, so that no table is unpacked."""
    copy = None
    large = node.get_byte_size() > SMALL
    for target in node.output(0).get_target_inputs():
        user = target.get_node()
        if large and user.get_type_name() == "Gather" and target.get_index() == 0:
            replace(user.output(0), operators.convert(user, "f32").output(0))
        elif large and user.get_type_name() in PRODUCTS:
            unpacked = operators.convert(node, "f32")
            unpacked.get_rt_info()[DECOMPRESSION] = ""
            target.replace_source_output(unpacked.output(0))
        else:
            if copy is None:
                copy = operators.constant(as_float32(node))
                copy.set_friendly_name(node.get_friendly_name())
            target.replace_source_output(copy.output(0))


def as_float32(node: Any) -> NDArray[np.float32]:
    """The values of an fp16 or bf16 constant."""
    raw, shape = node.data.tobytes(), tuple(node.get_output_shape(0))
    if node.get_element_type() == ov.Type.bf16:
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return np.frombuffer(raw, np.float16).astype(np.float32).reshape(shape)


def pack_nf4(gather: Any) -> None:
    """Replaces a look-up of the two NF4 codes of each byte (`look_up_codes` of export/graph/quantized_linear.py), with
    the Reshape behind it, by a constant of OpenVINO's NF4 type, whose first code of a byte is in the low half."""
    table, indices = (gather.input_value(index).get_node() for index in (0, 1))
    pairs = np.stack([np.repeat(NF4, NF4.size), np.tile(NF4, NF4.size)], axis=1)
    if table.get_type_name() != "Constant" or tuple(table.get_output_shape(0)) != pairs.shape:
        return
    if indices.get_type_name() != "Convert" or not np.allclose(table.data, pairs, atol=1e-6):
        return
    codes = indices.input_value(0).get_node()
    users = [target.get_node() for target in gather.output(0).get_target_inputs()]
    if codes.get_type_name() != "Constant" or [user.get_type_name() for user in users] != ["Reshape"]:
        return
    own = ov.Tensor(
        ov.Type.nf4, ov.Shape(users[0].get_output_shape(0))
    )  # of an array it would share the memory
    own.data.reshape(-1)[:] = (codes.data << 4 | codes.data >> 4).reshape(-1)
    packed = operators.constant(own)
    packed.set_friendly_name(codes.get_friendly_name())
    replace(users[0].output(0), operators.convert(packed, "f32").output(0))
