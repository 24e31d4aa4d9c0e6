"""Tensors that files hold beside a component's weights and that no network uses: other halves and heads of the text
encoders, copies, and what training left behind. By a list; everything else that is unknown is an error."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

ANYWHERE = {
    r"(^|\.)__x0__$": "training state",
    r"(^|\.)loss\.": "training losses",
    r"(^|\.)denoiser\.sigmas$": "noise schedule",
    r"^model_ema\.": "moving averages",
}
"""Pattern in a tensor's name → its kind, in every file."""

OF_CLIP = {
    r"(^|\.)(vision_model|visual)\.": "vision tower",
    r"(^|\.)(text|visual)_projection(\.weight)?$": "projections",
    r"(^|\.)logit_(scale|bias)$": "logit scale",
    r"(^|\.)position_ids$": "position ids",
    r"(^|\.)(context_length|input_resolution|vocab_size)$": "sizes",
}
OF_T5 = {
    r"(^|\.)spiece_model$": "tokenizer",
    r"(^|\.)logit_scale$": "logit scale",
}
BESIDE: Mapping[str, Mapping[str, str]] = {"text_encoder": OF_CLIP, "text_encoder_2": OF_T5}
"""Component → patterns of tensors of its model, wherever they are in a file that holds it."""

WITHIN: Mapping[str, Mapping[str, str]] = {
    "text_encoder_2": {
        r"^(decoder|dec)\.": "decoder",
        r"^(lm_head|output)\.weight$": "output head",
    }
}
"""Component → patterns of tensors that have its prefix; elsewhere, a decoder is the autoencoder's."""

COPY = "encoder.embed_tokens.weight"
"""T5's embedding under a second name, where `shared.weight` is its first."""


def kind_of(name: str, components: Iterable[str] = ()) -> str | None:
    """What an unused tensor is, in a file that holds `components`; None if it is not on the list."""
    return first_match(name, ANYWHERE, *(BESIDE.get(component, {}) for component in components))


def kind_within(component: str, name: str, names: Mapping[str, object]) -> str | None:
    """The same for a tensor of a component, all of whose tensors are `names`, without prefix."""
    if name == COPY and "shared.weight" in names:
        return "copies"
    return kind_of(name, [component]) or first_match(name, WITHIN.get(component, {}))


def first_match(name: str, *lists: Mapping[str, str]) -> str | None:
    return next(
        (kind for patterns in lists for pattern, kind in patterns.items() if re.search(pattern, name)), None
    )


def describe(title: str, ignored: Mapping[str, int]) -> str:
    """One line: "CLIP: not used: vision tower (296 tensors), projections (2)"."""
    counts = Counter(ignored).most_common()
    listed = [
        f"{kind} ({count}{' tensors' if not index else ''})" for index, (kind, count) in enumerate(counts)
    ]
    return f"{title}: not used: {', '.join(listed)}"
