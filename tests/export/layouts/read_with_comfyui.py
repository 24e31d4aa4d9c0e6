"""Reads a file with ComfyUI's own loaders, and writes what its modules hold; run by `test_comfyui` as a program of its
own, in ComfyUI's environment: ComfyUI reads its options and looks for a GPU as it is imported.

python read_with_comfyui.py COMFYUI FILE SIZES OUTPUT [INPUTS]

SIZES is JSON: the sizes of its text encoders, which it has as constants, for a whole checkpoint; null for the
transformer alone. OUTPUT gets every parameter as "NAME", and of quantized ones "NAME codes" and "NAME scale" too.
INPUTS are tensors to call its Flux module with, in fp32; OUTPUT then has "output".
"""

from __future__ import annotations

import json
import sys

import torch
from safetensors.torch import load_file, save_file

comfyui, file, sizes, output, *inputs = sys.argv[1:]
sys.path.insert(0, comfyui)
sys.argv = sys.argv[:1]

from comfy.cli_args import args  # noqa: E402

args.cpu = True

import comfy.sd  # noqa: E402
from comfy.quant_ops import QuantizedTensor  # noqa: E402


def held(prefix: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    result = {}
    for name, parameter in module.named_parameters():
        tensor = parameter.data
        if isinstance(tensor, QuantizedTensor):
            result[f"{prefix}{name} codes"] = tensor._qdata
            result[f"{prefix}{name} scale"] = tensor._params.scale
            tensor = tensor.dequantize()
        result[f"{prefix}{name}"] = tensor
    return {name: tensor.clone().contiguous() for name, tensor in result.items()}


if sizes == "null":
    patcher, read = comfy.sd.load_diffusion_model(file), {}
else:
    options = {f"{name}_model_config": each for name, each in json.loads(sizes).items()}
    patcher, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(file, te_model_options=options)
    read = held("clip_l.", clip.cond_stage_model.clip_l.transformer)
    read |= held("t5xxl.", clip.cond_stage_model.t5xxl.transformer)
    read |= held("vae.", vae.first_stage_model)
flux = patcher.model.diffusion_model
read |= held("", flux)
if inputs:
    with torch.no_grad():
        read["output"] = flux.forward_orig(**load_file(inputs[0]))
save_file(read, output)
