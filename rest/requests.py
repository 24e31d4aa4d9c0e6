"""Reads an edit from a request: a form with pictures, or JSON."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from ..runtime.server.contract import Limits
from .faults import Fault

MOST_FIELDS = 64
FIELD_BYTES = 64 << 10
JSON_BYTES = 1 << 20
IMAGES = ("image", "image[]")
"""Names of the fields with pictures; OpenAI's clients use the second one for several."""
SINGLE = ("mask", "init_image")
"""Names of the fields with one picture."""


class FormParser(MultiPartParser):
    """Keeps files in memory, whose size `guard` limits. Starlette's own writes those above 1 MB to the disk, each
    64 KB of them in another thread: 24 ms instead of 6 for 8 MB."""

    spool_max_size = 0
    """No limit."""


async def read_form(request: Request, limits: Limits) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    """The texts of a multipart form by name, and its files by name. Raises Fault."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise Fault(
            415, "send the edit as multipart/form-data, its pictures as files", code="unsupported_media_type"
        )
    try:
        async with aclosing(request.stream()) as stream:
            form = await FormParser(
                request.headers,
                stream,
                max_files=limits.max_references + 2,
                max_fields=MOST_FIELDS,
                max_part_size=FIELD_BYTES,
            ).parse()
    except MultiPartException as error:
        raise Fault(400, f"the form cannot be read: {error.message}", code="invalid_form") from None
    except (ValueError, LookupError, UnicodeError) as error:  # of a charset that the form names
        raise Fault(400, f"the form cannot be read: {error}", code="invalid_form") from None
    texts: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            files.setdefault(name, []).append(await value.read())
        elif name in texts:
            raise Fault(400, f"{name} is given twice", param=name, code="invalid_value")
        else:
            texts[name] = value
    await form.close()
    for name, data in files.items():
        if name not in (*IMAGES, *SINGLE):
            raise Fault(400, f"{name!r} is no field for a file", param=name, code="unknown_parameter")
        if name in SINGLE and len(data) > 1:
            raise Fault(400, f"{name} is given twice", param=name, code="invalid_value")
    for name in (*IMAGES, *SINGLE):
        if name in texts:
            raise Fault(
                400, f"{name} must be a file: send it with a filename", param=name, code="invalid_value"
            )
    return texts, files


async def read_json(request: Request) -> dict[str, Any]:
    """The object that a request holds. Raises Fault."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Fault(415, "send JSON, with Content-Type: application/json", code="unsupported_media_type")
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > JSON_BYTES:
            raise Fault(413, f"the body has more than {JSON_BYTES >> 20} MB", code="too_large")
    try:
        values = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise Fault(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(values, dict):
        raise Fault(400, "the body must be a JSON object", code="invalid_json")
    return values
