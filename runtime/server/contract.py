"""The interface between clients and the server: tensors, parameters and limits. config.pbtxt is written from it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ...errors import KontextError

STREAM = "kontext_stream"
"""The model with the pipeline: it sends a response after each step and one with the picture (decoupled)."""

UNARY = "kontext"
"""The model that forwards requests to STREAM and answers once, for clients without streaming."""

PICTURE_FORMATS = ("PNG", "JPEG", "WEBP")
"""Accepted formats of pictures, by Pillow's names; fewer decoders are a smaller attack surface."""


@dataclass(frozen=True)
class Tensor:
    """An input or output; `shape` leaves out the batch dimension, which is always 1, and -1 stands for any size."""

    name: str
    datatype: str
    """As the server's protocol spells it: BYTES, INT32, …"""
    shape: tuple[int, ...]
    meaning: str
    optional: bool = False

    @property
    def config_type(self) -> str:
        """The datatype as config.pbtxt spells it."""
        return "TYPE_STRING" if self.datatype == "BYTES" else f"TYPE_{self.datatype}"


PROMPT = Tensor("PROMPT", "BYTES", (1,), "the instruction, in UTF-8")
IMAGES = Tensor(
    "IMAGES",
    "BYTES",
    (-1,),
    "reference pictures: PNG, JPEG or WebP files, base64 of them, or data: URLs; without it the prompt alone is drawn",
    optional=True,
)
STEPS = Tensor("STEPS", "INT32", (1,), "sampler steps; the bundle's default", optional=True)
GUIDANCE = Tensor("GUIDANCE", "FP32", (1,), "guidance scale; the bundle's default", optional=True)
SEED = Tensor("SEED", "UINT64", (1,), "seed of the noise; 0", optional=True)
SIZE = Tensor(
    "SIZE",
    "INT32",
    (2,),
    "width and height of the output; by default the first reference's aspect at a size the model prefers",
    optional=True,
)
REFERENCE_METHOD = Tensor(
    "REFERENCE_METHOD",
    "BYTES",
    (1,),
    "how several references are placed: index, offset or stitch; the bundle's default",
    optional=True,
)
REFERENCE_SIZE = Tensor(
    "REFERENCE_SIZE",
    "BYTES",
    (1,),
    "what references are encoded at: auto, preferred, output or WIDTHxHEIGHT; auto",
    optional=True,
)
MASK = Tensor(
    "MASK",
    "BYTES",
    (1,),
    "a picture as in IMAGES: only what is white in it, or opaque if it has transparency, is repainted",
    optional=True,
)
MASK_BLUR = Tensor("MASK_BLUR", "INT32", (1,), "radius of a blur of MASK, in its pixels; 0", optional=True)
STRENGTH = Tensor(
    "STRENGTH",
    "FP64",
    (1,),
    "share of the steps that run, beginning from the picture with noise; 1: all, from noise",
    optional=True,
)
INIT_IMAGE = Tensor(
    "INIT_IMAGE",
    "BYTES",
    (1,),
    "the picture that is repainted, as in IMAGES; the first reference",
    optional=True,
)
PASTE_BACK = Tensor(
    "PASTE_BACK",
    "BOOL",
    (1,),
    "take the picture's own pixels outside MASK, not the autoencoder's; false",
    optional=True,
)
NEGATIVE_PROMPT = Tensor(
    "NEGATIVE_PROMPT",
    "BYTES",
    (1,),
    "what the picture should not be, in UTF-8; only counts with TRUE_CFG",
    optional=True,
)
TRUE_CFG = Tensor(
    "TRUE_CFG", "FP32", (1,), "scale of the guidance away from NEGATIVE_PROMPT; 1: none", optional=True
)
CFG_UNTIL = Tensor(
    "CFG_UNTIL", "FP64", (1,), "share of the steps that TRUE_CFG is for, from the first on; 1", optional=True
)
LORAS = Tensor(
    "LORAS",
    "BYTES",
    (-1,),
    "LoRAs of the server's folder that change the edit, each NAME or NAME:WEIGHT; none",
    optional=True,
)
ADDED = (MASK, MASK_BLUR, STRENGTH, INIT_IMAGE, PASTE_BACK, NEGATIVE_PROMPT, TRUE_CFG, CFG_UNTIL, LORAS)
"""Inputs that servers of earlier versions do not know. Over HTTP those take them for parameters, and ignore them."""

INPUTS = (PROMPT, IMAGES, STEPS, GUIDANCE, SEED, SIZE, REFERENCE_METHOD, REFERENCE_SIZE, *ADDED)
PICTURES = (IMAGES, INIT_IMAGE, MASK)
"""Inputs that are pictures."""

IMAGE = Tensor("IMAGE", "BYTES", (1,), "the edited picture, a PNG file")
WARNINGS = Tensor(
    "WARNINGS", "BYTES", (-1,), "what the user should know, such as how much of the prompt was cut"
)
PREVIEW = Tensor(
    "PREVIEW",
    "BYTES",
    (1,),
    "with each step, if the parameter `preview` is true: what the picture would become, as a small JPEG file",
)
DONE = Tensor("STEP", "INT32", (1,), "steps done")
TOTAL = Tensor("TOTAL", "INT32", (1,), "steps in all")
OUTPUTS = {UNARY: (IMAGE, WARNINGS), STREAM: (DONE, TOTAL, PREVIEW, IMAGE, WARNINGS)}

BASE64 = "base64"
"""Request parameter: whether to get IMAGE in base64. Without it, unless a reference came as the bytes of a file."""

PROGRESS = "progress"
"""Request parameter of STREAM: false to get the picture only."""

PREVIEWS = "preview"
"""Request parameter of STREAM: true to get PREVIEW with each step."""

METADATA = "metadata"
"""Request parameter: false for an IMAGE without what made it, which is in its chunks otherwise (`picture_metadata`)."""

PROBE = "probe"
"""Request parameter of the supervisor: true for an answer at once, without an edit, with an empty IMAGE if both models
work."""

CANCEL_FILE = "cancel_file"
"""Request parameter from UNARY to STREAM: the name of a file that is created when the caller disconnects."""

ERROR_CODES = ("INVALID_ARG", "CANCELLED", "UNAVAILABLE", "INTERNAL")
UNREADABLE = "the request's id and parameters are not UTF-8"
BROKEN = "the edit failed inside the server; its log says why"


@dataclass(frozen=True)
class Limits:
    """Limits of one request, and of how many wait; each is a parameter of config.pbtxt of the same name."""

    max_steps: int = 200
    max_references: int = 8
    max_megapixels: int = 64
    """Of all pictures of a request together, as they are sent and as they are encoded."""
    max_prompt_bytes: int = 16384
    max_decode_seconds: int = 10
    """Of a processor's time, for each picture."""
    max_output_megapixels: int = 4
    max_megapixel_steps: int = 1000
    """Steps, those with true CFG twice, times the pixels of the output and of the references as they are encoded."""
    max_seconds: int = 3600
    """By the clock, from the beginning of an edit's batch; looked at after each step."""
    max_queue: int = 256
    """Requests that wait at a time; further ones are refused."""

    @classmethod
    def from_parameters(cls, parameters: dict[str, str]) -> Limits:
        """From config.pbtxt's parameters; missing ones keep their defaults."""
        return cls(
            **{each.name: int(parameters[each.name]) for each in fields(cls) if each.name in parameters}
        )


def read_limit(text: str, flag: str) -> tuple[str, int]:
    """A limit by its flag: "NAME=N". Raises KontextError for a name or a number that is none."""
    names = [each.name for each in fields(Limits)]
    name, _, number = text.partition("=")
    if name not in names:
        raise KontextError(f"{flag} {text}: NAME must be one of {', '.join(names)}")
    if not (number.isascii() and number.isdigit() and len(number) <= 10 and 1 <= int(number) < 2**31):
        raise KontextError(f"{flag} {text}: N must be a whole number from 1 to {2**31 - 1}")
    return name, int(number)
