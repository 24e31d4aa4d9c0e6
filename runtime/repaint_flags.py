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
        help="scale of the guidance away from --negative-prompt, such as 4; its steps are twice the work (default: 1, "
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
    """What the flags say, as arguments of `Pipeline.edit`; `reduce` as in `open_picture`, for what is repainted."""
    from .images import open_picture

    mask, init_image = arguments.mask, arguments.init_image
    return {
        **values(arguments),
        "mask": None if mask is None else open_picture(mask, reduce=False),  # a blur is in its own pixels
        "init_image": None if init_image is None else open_picture(init_image, reduce=reduce),
    }


def sent_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the flags say, as fields of `server_client.Edit`: its pictures are files."""
    from .sent_pictures import mask_file, picture_file

    return {
        **values(arguments),
        "mask": None if arguments.mask is None else mask_file(arguments.mask),
        "init_image": None if arguments.init_image is None else picture_file(arguments.init_image),
    }


def values(arguments: argparse.Namespace) -> dict[str, Any]:
    """What is no picture."""
    names = ("mask_blur", "strength", "paste_back", "negative_prompt", "true_cfg", "cfg_until")
    return {name: getattr(arguments, name) for name in names}
