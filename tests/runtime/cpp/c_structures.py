"""The structures and callbacks of the C API (kontext.h), for ctypes."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from PIL import Image

OK, ERROR, CANCELLED = range(3)


class CImage(ctypes.Structure):
    _fields_ = [
        ("width", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("rgb", ctypes.POINTER(ctypes.c_uint8)),
    ]


INPUT_FILTER = ctypes.CFUNCTYPE(
    ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(CImage), ctypes.c_size_t, ctypes.c_char_p
)
OUTPUT_FILTER = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(CImage))
PROGRESS = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_int32,
    ctypes.c_int32,
    ctypes.POINTER(ctypes.c_float),
    ctypes.POINTER(ctypes.c_size_t),
)
WARNING = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p)
FOUND = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_char_p] * 3)


class CLoadOptions(ctypes.Structure):
    _fields_ = [
        ("device", ctypes.c_char_p),
        ("provider", ctypes.c_char_p),
        ("compute", ctypes.c_char_p),
        ("threads", ctypes.c_int32),
        ("low_memory", ctypes.c_int32),
        ("verify", ctypes.c_int32),
        ("input_filter", INPUT_FILTER),
        ("output_filter", OUTPUT_FILTER),
        ("user", ctypes.c_void_p),
        ("require_digest", ctypes.c_char_p),
        ("allow_links", ctypes.c_int32),
    ]


class CLora(ctypes.Structure):
    _fields_ = [("path", ctypes.c_char_p), ("weight", ctypes.c_double)]


class CEditOptions(ctypes.Structure):
    _fields_ = [
        ("references", ctypes.POINTER(CImage)),
        ("reference_count", ctypes.c_size_t),
        ("steps", ctypes.c_int32),
        ("has_guidance", ctypes.c_int32),
        ("guidance", ctypes.c_double),
        ("seed", ctypes.c_uint64),
        ("width", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("reference_method", ctypes.c_char_p),
        ("reference_size", ctypes.c_char_p),
        ("progress", PROGRESS),
        ("warning", ctypes.c_void_p),
        ("user", ctypes.c_void_p),
        ("mask", ctypes.POINTER(CImage)),
        ("mask_blur", ctypes.c_int32),
        ("strength", ctypes.c_double),
        ("init_image", ctypes.POINTER(CImage)),
        ("paste_back", ctypes.c_int32),
        ("negative_prompt", ctypes.c_char_p),
        ("true_cfg", ctypes.c_double),
        ("cfg_until", ctypes.c_double),
        ("loras", ctypes.POINTER(CLora)),
        ("lora_count", ctypes.c_size_t),
    ]


class CEntry(ctypes.Structure):
    _fields_ = [
        ("prompt", ctypes.c_char_p),
        ("references", ctypes.POINTER(CImage)),
        ("reference_count", ctypes.c_size_t),
    ]


def c_image(picture: Image.Image, kept: list[Any]) -> CImage:
    """Its pixels are those in `kept`."""
    kept.append(np.ascontiguousarray(picture.convert("RGB")))
    return CImage(*picture.size, kept[-1].ctypes.data_as(ctypes.POINTER(ctypes.c_uint8)))
