"""A contact sheet: before and after pictures of several edits, each with its prompt, in one picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT = (255, 255, 255), (40, 40, 48), (150, 150, 160)


def contact_sheet(
    rows: Sequence[tuple[Image.Image | None, Image.Image, str]], columns: int = 3, side: int = 160
) -> Image.Image:
    """Draws each edit as before → after, with its prompt below.

    Args:
        rows: (before, after, prompt) of each edit; `before` is None for text-to-image.
        columns: edits per line.
        side: pictures are scaled to fit `side` x `side` pixels.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one row")
    columns = min(columns, len(rows))
    gap, arrow, margin = 14, 26, 18
    text_size = max(11, side // 11)
    font = ImageFont.load_default(text_size)
    label_height = round(2.9 * text_size)
    cell_width, cell_height = 2 * side + arrow, side + label_height
    lines = -(-len(rows) // columns)
    width = 2 * margin + columns * cell_width + (columns - 1) * 2 * gap
    sheet = Image.new("RGB", (width, 2 * margin + lines * cell_height + (lines - 1) * gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (before, after, prompt) in enumerate(rows):
        x = margin + index % columns * (cell_width + 2 * gap)
        y = margin + index // columns * (cell_height + gap)
        if before is None:
            draw.rectangle([x, y, x + side - 1, y + side - 1], outline=FAINT)
            draw.text((x + side / 2, y + side / 2), "text only", fill=FAINT, font=font, anchor="mm")
        else:
            place(sheet, before, x, y, side)
        middle, reach = y + side // 2, arrow // 2 - 5
        centre = x + side + arrow // 2
        draw.line([centre - reach, middle, centre + reach, middle], fill=INK, width=2)
        draw.polygon(
            [
                (centre + reach + 2, middle),
                (centre + reach - 5, middle - 5),
                (centre + reach - 5, middle + 5),
            ],
            fill=INK,
        )
        place(sheet, after, x + side + arrow, y, side)
        label = wrap(prompt, font, cell_width)
        draw.multiline_text(
            (x + cell_width / 2, y + side + 6), label, fill=INK, font=font, anchor="ma", align="center"
        )
    return sheet


def place(sheet: Image.Image, picture: Image.Image, x: int, y: int, side: int) -> None:
    """Pastes `picture`, scaled to fit a square of `side` pixels whose corner is (x, y), in its centre."""
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    fitted = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    sheet.paste(fitted, (x + (side - size[0]) // 2, y + (side - size[1]) // 2))


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Breaks `text` into at most two lines of `width` pixels; longer text is cut and ends with "…"."""
    per_letter = max(1.0, font.getlength(text) / max(1, len(text)))
    lines = textwrap.wrap(text, max(8, int(width / per_letter * 0.95)), max_lines=2, placeholder=" …")
    return "\n".join(lines)
