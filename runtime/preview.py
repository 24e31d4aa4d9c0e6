"""Pictures of an edit that is not done: what its latents would come to, in colours by a linear map instead of the
decoder. A millionth of the decoder's work, and an eighth of the picture's sides.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import KontextError
from .bundle import Bundle
from .images import to_pictures
from .preview_entry import PreviewEntry

Array = NDArray[np.float32]


def check_previews(bundle: Bundle) -> PreviewEntry:
    """The bundle's colours. Raises KontextError if it was exported before previews were."""
    if bundle.preview is None:
        raise KontextError(
            f"{bundle.folder} has no colours for previews: it was exported by an earlier version; export it again"
        )
    return bundle.preview


def draw_latents(bundle: Bundle, latents: Array) -> list[Image.Image]:
    """RGB pictures of latents [batch, channels, h, w], of w x h pixels.

    Raises:
        KontextError: the bundle was exported before previews were.
    """
    entry = check_previews(bundle)
    factors, bias = np.array(entry.factors, np.float32), np.array(entry.bias, np.float32)
    colours = np.einsum("bchw,cr->brhw", latents, factors) + bias[:, None, None]
    return to_pictures(np.nan_to_num(colours))
