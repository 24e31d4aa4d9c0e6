"""FLUX.1 Kontext in optimum-intel, on OpenVINO; its own FLUX pipelines have no references.

pipeline = OVFluxKontextPipeline.from_pretrained("my-folder", from_onnx=True)    # of `kontext-export --to optimum`
picture = pipeline(image=reference, prompt="make it night").images[0]
"""

from __future__ import annotations

from ..installation import install_command

try:
    from diffusers import FluxKontextPipeline
    from optimum.intel.openvino.modeling_diffusion import OVDiffusionPipeline
except ImportError as error:
    raise ImportError(
        "OVFluxKontextPipeline needs optimum-intel, OpenVINO and diffusers: "
        f"{install_command('openvino', 'optimum')} ({error})"
    ) from error


class OVFluxKontextPipeline(OVDiffusionPipeline, FluxKontextPipeline):
    """diffusers' FluxKontextPipeline, called like it, on OpenVINO.

    `from_pretrained(folder, from_onnx=True, device="CPU", ov_config={…}, …)` is optimum's.
    """

    export_feature = "image-to-image"
    main_input_name = "image"
    auto_model_class = FluxKontextPipeline
