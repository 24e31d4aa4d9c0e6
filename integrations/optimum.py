"""FLUX.1 Kontext in optimum-onnx, whose own FLUX pipeline draws from a prompt alone.

pipeline = ORTFluxKontextPipeline.from_pretrained("my-folder")    # what `kontext-export --to optimum` wrote
picture = pipeline(image=reference, prompt="make it night").images[0]
"""

from __future__ import annotations

from ..installation import install_command

try:
    from diffusers import FluxKontextPipeline
    from optimum.onnxruntime import ORTDiffusionPipeline
except ImportError as error:
    raise ImportError(
        f"ORTFluxKontextPipeline needs optimum-onnx and diffusers: {install_command('cpu', 'optimum')} ({error})"
    ) from error


class ORTFluxKontextPipeline(ORTDiffusionPipeline, FluxKontextPipeline):
    """diffusers' FluxKontextPipeline, called like it, on ONNX Runtime.

    `from_pretrained(folder, provider="CPUExecutionProvider", …)` is optimum's: a folder of `kontext-export --to
    optimum`, or one that optimum itself exported from a FluxKontextPipeline.
    """

    task = "image-to-image"
    main_input_name = "image"
    auto_model_class = FluxKontextPipeline
