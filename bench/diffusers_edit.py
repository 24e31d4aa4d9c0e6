"""A script as a user of diffusers would write it for one edit: what runs beside `kontext-edit` as a whole process.

It imports nothing of this package, so that its whole cost is diffusers'; but for what puts OpenVINO below it.
"""

from __future__ import annotations

import argparse
import os


def main() -> None:
    parser = argparse.ArgumentParser(description="One edit with FluxKontextPipeline.")
    parser.add_argument("checkpoint")
    parser.add_argument("--image", required=True)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--guidance", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--size", required=True, metavar="WxH")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compute", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--compiler", help="of the transformer: inductor or openvino")
    parser.add_argument("--torchao", metavar="CONFIGURATION", help="quantize the transformer with it")
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()

    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from diffusers import FluxKontextPipeline
    from PIL import Image

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.compute]
    pipe = FluxKontextPipeline.from_pretrained(arguments.checkpoint, torch_dtype=dtype)
    pipe = pipe.to(arguments.device)
    if arguments.torchao:
        from torchao import quantization

        quantization.quantize_(pipe.transformer, getattr(quantization, arguments.torchao)())
    if arguments.compiler == "openvino":
        from .diffusers_peer import run_in_openvino

        run_in_openvino(pipe)
    elif arguments.compiler:
        pipe.transformer.forward = torch.compile(pipe.transformer.forward, backend=arguments.compiler)
    width, height = map(int, arguments.size.split("x"))
    image = Image.open(arguments.image, formats=["PNG"]).convert("RGB")
    result = pipe(
        image=image,
        prompt=arguments.prompt,
        width=width,
        height=height,
        max_area=width * height,
        _auto_resize=False,
        num_inference_steps=arguments.steps,
        guidance_scale=arguments.guidance,
        generator=torch.Generator("cpu").manual_seed(arguments.seed),
        max_sequence_length=pipe.tokenizer_2.model_max_length,
    )
    result.images[0].save(arguments.output)


if __name__ == "__main__":
    main()
