"""The fields of a request, those of OpenAI's image API and this model's own; they become a `server_client.Edit`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..runtime.noise import LARGEST_SEED
from ..runtime.reference_options import REFERENCE_METHODS, one_of
from ..runtime.server_client import Edit
from .faults import Fault

MOST_PICTURES = 10
"""Of one request, as for OpenAI."""

MOST_PARTIAL = 100
"""OpenAI has 3."""

SIZE = r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"


class EditFields(BaseModel):
    """What describes an edit beside its pictures."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=16384, description="the instruction")
    model: str | None = Field(None, description="the model's id, as /v1/models lists it")
    n: int = Field(1, ge=1, le=MOST_PICTURES, description="pictures to make, with consecutive seeds")
    size: str = Field(
        "auto",
        pattern=SIZE,
        description="WIDTHxHEIGHT; auto: the first picture's aspect at a size that the model prefers",
    )
    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="seed of the noise of the first picture")
    steps: int | None = Field(None, ge=1, le=100_000, description="sampler steps; the bundle's default")
    guidance: float | None = Field(
        None, allow_inf_nan=False, ge=-1e6, le=1e6, description="guidance scale; the bundle's default"
    )
    reference_method: str | None = Field(
        None,
        max_length=20,
        description=f"how several pictures are placed: {one_of(REFERENCE_METHODS)}; the bundle's default",
    )
    reference_size: str | None = Field(
        None,
        max_length=20,
        description="what pictures are encoded at: auto, preferred, output or WIDTHxHEIGHT; auto",
    )
    strength: float = Field(
        1.0,
        allow_inf_nan=False,
        description="share of the steps that run, beginning from the picture with noise; 1: all, from noise",
    )
    mask_blur: int = Field(0, ge=0, le=100_000, description="radius of a blur of the mask, in its pixels")
    paste_back: bool = Field(False, description="take the picture's own pixels outside the mask")
    negative_prompt: str | None = Field(
        None, max_length=16384, description="what the picture should not be; needs true_cfg"
    )
    true_cfg: float = Field(
        1.0,
        allow_inf_nan=False,
        ge=-1e6,
        le=1e6,
        description="scale of the guidance away from negative_prompt; 1: none",
    )
    cfg_until: float = Field(
        1.0, allow_inf_nan=False, description="share of the steps that true_cfg is for, from the first on"
    )
    loras: str = Field(
        "",
        max_length=1000,
        description="LoRAs of the server's folder, NAME or NAME:WEIGHT, with commas between",
    )
    response_format: Literal["b64_json", "url"] = Field(
        "b64_json", description="pictures in the answer, or links to them that expire"
    )
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: int | None = Field(
        None, ge=0, le=100, description="quality of JPEG and WebP (95); PNG takes none"
    )
    stream: bool = Field(False, description="server-sent events instead of one answer")
    progress: bool = Field(False, description="with stream: an event kontext.progress after each step")
    partial_images: int = Field(
        0,
        ge=0,
        le=MOST_PARTIAL,
        description="with stream: so many previews of each picture, an eighth of its size",
    )
    metadata: bool = Field(True, description="prompt, seed and other settings in the picture's file")
    background: Literal["auto", "opaque"] = Field("auto", description="pictures are opaque here")
    quality: Literal["auto"] = Field("auto", description="ask for steps instead")
    moderation: Literal["auto"] = Field("auto", description="content filters are the deployer's")
    user: str | None = Field(None, max_length=512, description="taken and ignored")

    def edit(self, images: list[bytes], mask: bytes | None = None, init_image: bytes | None = None) -> Edit:
        """The edit of these pictures; the mask is white where to edit."""
        width, _, height = self.size.partition("x")
        return Edit(
            self.prompt,
            images,
            self.steps,
            self.guidance,
            self.seed,
            (int(width), int(height)) if height else None,
            self.reference_method,
            self.reference_size,
            mask,
            self.mask_blur,
            self.strength,
            init_image,
            self.paste_back,
            self.negative_prompt,
            self.true_cfg,
            self.cfg_until,
            [each.strip() for each in self.loras.split(",") if each.strip()],
        )


def read_fields(values: dict[str, Any], model: str, *, strict: bool) -> EditFields:
    """The fields of a request.

    Args:
        values: by name; texts, or with `strict` what JSON had.
        model: the one model that is served.
        strict: whether values have their types, as in JSON, or are texts, as in a form.

    Raises:
        Fault: one is missing, wrong, or none of the API's.
    """
    try:
        fields = EditFields.model_validate(values, strict=strict)
    except ValidationError as error:
        raise fault_of_field(error) from None
    if fields.model not in (None, model):
        raise Fault(
            404,
            f"there is no model {fields.model!r} here: leave model out, or write {model!r}",
            param="model",
            code="model_not_found",
        )
    if fields.partial_images and not fields.stream:
        raise Fault(400, "partial_images need stream=true", param="partial_images", code="invalid_value")
    if fields.output_compression is not None and fields.output_format == "png":
        raise Fault(
            400,
            "output_compression is for jpeg and webp: PNG loses nothing",
            param="output_compression",
            code="invalid_value",
        )
    return fields


def fault_of_field(error: ValidationError) -> Fault:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "missing":
        return Fault(400, f"{name} is missing", param=name, code="missing_required_parameter")
    if first["type"] == "extra_forbidden":
        return Fault(
            400,
            f"{name!r} is no field of this request: /openapi.json lists them",
            param=name,
            code="unknown_parameter",
        )
    if first["type"] == "string_pattern_mismatch" and name == "size":
        return Fault(
            400,
            f"size must be WIDTHxHEIGHT, such as 1024x768, or auto, not {first['input']!r}",
            param=name,
            code="invalid_value",
        )
    said = first["msg"][:1].lower() + first["msg"][1:]
    return Fault(400, f"{name or 'the body'}: {said}", param=name, code="invalid_value")
