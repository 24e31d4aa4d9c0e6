"""Masks as OpenAI's API takes them, with holes where to edit, as the masks that an edit takes: white where to edit."""

from __future__ import annotations

import asyncio

from ..errors import KontextError
from ..runtime.server.contract import PICTURE_FORMATS, Limits
from ..runtime.server.decoding import Decoders
from ..runtime.server.jobs import png
from .faults import Fault, fault_of


class Masks:
    """Converts masks, each in a process that may die of it. Raises ComputationError if there can be none."""

    def __init__(self, limits: Limits) -> None:
        self.decoders = Decoders(1, limits.max_decode_seconds)
        self.most_pixels = limits.max_megapixels * 1_000_000

    async def white_where_holes_are(self, file: bytes) -> bytes:
        """A grey PNG file of a mask's file; what is transparent becomes white, and a mask without transparency stays.

        Raises Fault if it is no picture, or beyond the limits.
        """
        try:
            return await asyncio.to_thread(self.convert, file)
        except KontextError as error:
            fault = fault_of(error)
            raise Fault(fault.status, fault.message, param="mask", code=fault.code) from None

    def convert(self, file: bytes) -> bytes:
        decoded = self.decoders.decode(
            file, "mask", PICTURE_FORMATS, self.most_pixels, reduce=False, mask=True, holes=True
        )
        return png(decoded.picture)

    def close(self) -> None:
        self.decoders.close()
