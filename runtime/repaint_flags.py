"""The flags of `kontext-edit` for repainting and negative prompts, as arguments of `Pipeline.edit`."""

from __future__ import annotations

import argparse
from typing import Any

from ..command import Parser, local_path


def add_repaint_flags(parser: Parser) -> None:
    parser.add_argument(
        "--mask",
        type=local_path,
        metavar="FILE",
        help="repaint only what is white in this picture, or opaque if it has transparency; its size does not matter",
    )
    parser.add_argument(
        "--mask-blur", type=int, default=0, metavar="N", help="blur the mask by N of its pixels (default: 0)"
    )
    parser.add_argument(
        "--strength",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="begin from the picture with noise, and run this share of the steps; 1 begins from noise (default: 1)",
    )
    parser.add_argument(
        "--init-image",
        type=local_path,
        metavar="FILE",
        help="the picture that is repainted (default: the first --image)",
    )
    parser.add_argument(
        "--paste-back",
        action="store_true",
        help="take the picture's own pixels outside the blurred mask, not the autoencoder's",
    )
    parser.add_argument(
        "--negative-prompt", metavar="TEXT", help="what the picture should not be; needs --true-cfg"
    )
    parser.add_argument(
        "--true-cfg",
        type=float,
        default=1.0,
        metavar="SCALE",
        help="scale of the guidance away from --negative-prompt, such as 4; its steps take twice the time (default: 1, "
        "none)",
    )
    parser.add_argument(
        "--cfg-until",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="only guide so in this share of the steps, from the first on (default: 1)",
    )


def repaint_arguments(arguments: argparse.Namespace, *, reduce: bool) -> dict[str, Any]:
    """What the flags say, as arguments of `Pipeline.edit`; the pictures are read, `reduce` as in `open_picture`."""
    from .images import open_picture

    def read(path: Any) -> Any:
        return None if path is None else open_picture(path, reduce=reduce)

    return {
        "mask": read(arguments.mask),
        "mask_blur": arguments.mask_blur,
        "strength": arguments.strength,
        "init_image": read(arguments.init_image),
        "paste_back": arguments.paste_back,
        "negative_prompt": arguments.negative_prompt,
        "true_cfg": arguments.true_cfg,
        "cfg_until": arguments.cfg_until,
    }
