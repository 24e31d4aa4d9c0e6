"""What the API's description (OpenAPI) says of requests and answers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from .fields import EditFields


class Item(BaseModel):
    """A picture of an answer."""

    b64_json: str | None = None
    url: str | None = None
    seed: int


class ImagesResponse(BaseModel):
    created: int
    data: list[Item]
    background: Literal["opaque"]
    output_format: Literal["png", "jpeg", "webp"]
    size: str
    warnings: list[str]


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["kontext-export"] = "kontext-export"
    previews: bool
    """Whether `partial_images` are known to be made."""


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    problem: str


class ErrorBody(BaseModel):
    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


class Error(BaseModel):
    error: ErrorBody


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Responses of a route for these statuses."""
    meanings = {
        400: "A field is wrong, or a content filter refused the edit",
        401: "No valid API key",
        403: "The call comes from a page of another site, or under another name",
        404: "There is none of this name",
        408: "The body came too slowly",
        413: "The body is too large",
        415: "The body is of another type",
        429: "Too many edits wait; Retry-After says when to try again",
        500: "The edit failed",
        503: "Nothing edits now",
        504: "The edit took too long",
    }
    return {status: {"model": Error, "description": meanings[status]} for status in statuses}


EVENT = {
    "type": "object",
    "description": "One event; its data is JSON",
    "required": ["event", "data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}
EDIT_ERRORS = errors(400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504)
EDITED: dict[int | str, dict[str, Any]] = {
    200: {
        "model": ImagesResponse,
        "description": "The pictures; with stream, server-sent events",
        "content": {"text/event-stream": {"schema": EVENT}},
    },
    **EDIT_ERRORS,
}


def body(media_type: str, pictures: bool) -> dict[str, Any]:
    """The requestBody of an edit."""
    schema = EditFields.model_json_schema()
    if pictures:
        file = {"type": "string", "format": "binary"}
        schema["properties"] |= {
            "image": {**file, "description": "the picture to edit: PNG, JPEG or WebP"},
            "image[]": {"type": "array", "items": file, "description": "several pictures"},
            "mask": {
                **file,
                "description": "what is transparent in it is repainted; without transparency, what is white",
            },
            "init_image": {**file, "description": "the picture that is repainted; the first one"},
        }
        for each in schema["properties"].values():  # a form has no null: leave the field out
            if options := [option for option in each.get("anyOf", []) if option != {"type": "null"}]:
                del each["anyOf"]
                each |= options[0]
                del each["default"]
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}
