"""Reads GGUF files with ComfyUI-GGUF and runs ComfyUI's Flux on them: python comfyui_gguf_reader.py COMFYUI
COMFYUI_GGUF INPUTS FILE…, in an environment with ComfyUI's requirements.

Beside each FILE, a safetensors file gets every weight as its operators dequantize it, in fp32, and the network's
output, under "output".
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def main() -> None:
    comfyui, nodes, inputs, *files = sys.argv[1:]
    sys.argv[1:] = ["--cpu"]
    sys.path.insert(0, comfyui)
    importlib.import_module("comfy.options").enable_args_parsing()
    detection: Any = importlib.import_module("comfy.model_detection")
    # Its __init__ imports nodes of the user interface, and the folder's name is no module's.
    package = types.ModuleType("comfyui_gguf")
    package.__path__ = [str(Path(nodes).resolve())]
    sys.modules["comfyui_gguf"] = package
    loader, dequant, ops = (
        importlib.import_module(f"comfyui_gguf.{each}") for each in ("loader", "dequant", "ops")
    )
    # As its advanced loader sets it; the plain one dequantizes in fp16.
    ops.GGMLOps.Linear.dequant_dtype = torch.float32
    flux = importlib.import_module("comfy.ldm.flux.model").Flux
    given = load_file(inputs)
    for file in files:
        state, architecture = loader.gguf_sd_loader(file, return_arch=True)
        assert architecture == "flux"
        numbers = {
            name: torch.Tensor(dequant.dequantize_tensor(tensor, torch.float32, torch.float32)).contiguous()
            for name, tensor in state.items()
        }
        config = detection.detect_unet_config(dict(state), "")
        assert config.pop("image_model") == "flux"
        # It has FLUX's sizes as constants.
        width = state["img_in.weight"].shape[0]
        config |= {"hidden_size": width, "num_heads": width // 128}
        config["context_in_dim"] = state["txt_in.weight"].shape[1]
        network = flux(dtype=torch.float32, device="cpu", operations=ops.GGMLOps, **config)
        missing, unexpected = network.load_state_dict(state, strict=False)
        assert not missing
        assert not unexpected
        with torch.no_grad():
            output = network.forward_orig(
                given["hidden_states"],
                given["img_ids"][None],
                given["encoder_hidden_states"],
                given["txt_ids"][None],
                given["timestep"],
                given["pooled_projections"],
                given["guidance"],
            )
        save_file({**numbers, "output": output.contiguous()}, Path(file).with_suffix(".safetensors"))


main()
