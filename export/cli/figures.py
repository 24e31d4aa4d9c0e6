"""Matplotlib figures without a display, written to a file atomically."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import KontextError
from ...files import replacing
from ...installation import install_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(size: tuple[float, float]) -> Figure:
    """An empty figure of `size` (width, height) in inches.

    Raises:
        KontextError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as fault:
        raise KontextError(f"plots need matplotlib: {install_command('export')} ({fault})") from None
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes `figure` in the format of the path's ending (png, svg, pdf).

    Raises:
        KontextError: matplotlib does not know the format, or the file cannot be written.
    """
    form = path.suffix.removeprefix(".") or "png"
    try:
        with replacing(path) as temporary:
            figure.savefig(temporary, format=form, metadata={"Software": None} if form == "png" else None)
    except (OSError, ValueError) as fault:
        raise KontextError(f"cannot draw {path}: {fault}") from None
