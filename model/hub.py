"""Models of the Hugging Face hub by their id, through huggingface_hub: its cache, its credentials, its mirrors."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import KontextError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]{1,100})?")
"""owner/name, and @revision where another than the newest is wanted."""

WANTED = [
    "model_index.json",
    *(f"{folder}/*" for folder in ("scheduler", "tokenizer", "tokenizer_2")),
    *(
        f"{folder}/*{ending}"
        for folder in ("transformer", "vae", "text_encoder", "text_encoder_2")
        for ending in (".json", ".safetensors")
    ),
]
"""Files of a diffusers folder; Black Forest Labs' repository holds its 24 GB transformer a second time besides."""


def is_hub_id(text: str) -> bool:
    return HUB_ID.fullmatch(text) is not None and not Path(text).exists()


def download(hub_id: str) -> Path:
    """The diffusers folder of a hub id in the hub's own cache; what is there already is not fetched again.

    Raises:
        KontextError: there is no such model, it asks for a licence to be accepted, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, _, revision = hub_id.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=WANTED))
    except GatedRepoError:
        raise KontextError(
            f"{name} asks for its licence to be accepted: do so at https://huggingface.co/{name}, then `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise KontextError(f"{name} has no revision {revision}") from None
    except RepositoryNotFoundError:
        raise KontextError(
            f"there is neither a file nor a folder {hub_id} here, nor a public model {name} on the hub: check its "
            "spelling, or `hf auth login` if it is private"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as fault:
        raise KontextError(
            f"there is neither a file nor a folder {hub_id} here, and the hub cannot be reached to look for it there "
            f"({type(fault).__name__}): give the path of a model, or try again when online"
        ) from None
