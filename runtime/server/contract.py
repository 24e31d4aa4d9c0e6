"""The interface between clients and the server: tensors, parameters and limits. config.pbtxt is written from it."""

from __future__ import annotations

from dataclasses import dataclass, fields

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
INPUTS = (PROMPT, IMAGES, STEPS, GUIDANCE, SEED, SIZE, REFERENCE_METHOD, REFERENCE_SIZE)

IMAGE = Tensor("IMAGE", "BYTES", (1,), "the edited picture, a PNG file")
WARNINGS = Tensor(
    "WARNINGS", "BYTES", (-1,), "what the user should know, such as how much of the prompt was cut"
)
DONE = Tensor("STEP", "INT32", (1,), "steps done")
TOTAL = Tensor("TOTAL", "INT32", (1,), "steps in all")
OUTPUTS = {UNARY: (IMAGE, WARNINGS), STREAM: (DONE, TOTAL, IMAGE, WARNINGS)}

BASE64 = "base64"
"""Request parameter: whether to get IMAGE in base64. Without it, unless a reference came as the bytes of a file."""

PROGRESS = "progress"
"""Request parameter of STREAM: false to get the picture only."""

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
    """Of all references of a request together, as they are sent and as they are encoded."""
    max_prompt_bytes: int = 16384
    max_decode_seconds: int = 10
    """Of a processor's time, for each reference."""
    max_output_megapixels: int = 4
    max_megapixel_steps: int = 1000
    """Steps times the pixels of the output and of the references as they are encoded."""
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
