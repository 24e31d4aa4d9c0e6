"""A pool of encoded edits to train the flow on. Drawing and encoding an edit is expensive, so each is used a few times.

Batches are drawn from the whole pool at random, while part of it is replaced by new edits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..model.autoencoder import Autoencoder
from .network import pack
from .scenes import render
from .train_autoencoder import to_tensor
from .variety import varied_edit

ENCODE_BATCH = 16


@dataclass
class Batch:
    """`source` and `target` are packed normalized latents [batch, tokens, 64]; for text-to-image `source` has no
    tokens."""

    source: Tensor
    target: Tensor
    prompts: list[str]


class EditPool:
    """Edits with a reference (key True) and text-to-image (key False), as fp16 latents in memory."""

    def __init__(self, encoder: torch.nn.Module, size: int, seed: list[int], device: str = "cpu") -> None:
        self.encoder, self.size, self.device = encoder, size, device
        self.rng = np.random.default_rng(seed)
        self.pairs: dict[bool, list[tuple[Tensor | None, Tensor, str]]] = {True: [], False: []}
        self.next = {True: 0, False: 0}

    @torch.no_grad()
    def encode(self, pictures: list[np.ndarray]) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16):
            latents = self.encoder(to_tensor(pictures).to(self.device))
        return pack(latents.float()).half().cpu()

    def add(self, count: int) -> None:
        """Draws `count` edits; when the pool is full they replace the oldest."""
        for start in range(0, count, ENCODE_BATCH):
            edits = [varied_edit(self.rng) for _ in range(min(ENCODE_BATCH, count - start))]
            targets = self.encode([render(edit.target) for edit in edits])
            pictures = [render(edit.source) for edit in edits if edit.source is not None]
            sources = iter(self.encode(pictures) if pictures else ())
            for edit, target in zip(edits, targets, strict=True):
                has_source = edit.source is not None
                self.insert(has_source, (next(sources) if has_source else None, target, edit.prompt))

    def fill(self, count: int) -> None:
        """As `add`, with a progress bar, to fill the pool before training."""
        for _ in tqdm(range(count // 64), desc="drawing edits"):
            self.add(64)

    def insert(self, has_source: bool, item: tuple[Tensor | None, Tensor, str]) -> None:
        pairs = self.pairs[has_source]
        if len(pairs) < self.size:
            pairs.append(item)
        else:
            pairs[self.next[has_source] % self.size] = item
            self.next[has_source] += 1

    def sample(self, count: int) -> Batch:
        """A batch of edits, or of text-to-image, in the pool's proportion of the two."""
        edits, drawings = len(self.pairs[True]), len(self.pairs[False])
        has_source = bool(self.rng.random() < edits / (edits + drawings))
        pairs = self.pairs[has_source]
        chosen = [pairs[i] for i in self.rng.integers(len(pairs), size=count)]
        target = torch.stack([item[1] for item in chosen]).float().to(self.device)
        sources = [item[0] for item in chosen if item[0] is not None]
        source = torch.stack(sources).float().to(self.device) if sources else target[:, :0]
        return Batch(source, target, [item[2] for item in chosen])


def normalization(autoencoder: Autoencoder, images: Tensor) -> tuple[float, float]:
    """(shift, scale) that give the latents of `images` mean 0 and standard deviation 1."""
    with torch.no_grad():
        mean, _ = autoencoder.encoder.moments(images)
    return float(mean.mean()), float(1 / mean.std())
