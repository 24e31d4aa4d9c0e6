"""Downloads models from the Hugging Face hub with huggingface_hub: its cache, credentials and mirrors apply."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import KontextError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]{1,100})?")
"""owner/name, optionally with @revision."""

WANTED = [
    "model_index.json",
    *(f"{folder}/*" for folder in ("scheduler", "tokenizer", "tokenizer_2")),
    *(
        f"{folder}/*{ending}"
        for folder in ("transformer", "vae", "text_encoder", "text_encoder_2")
        for ending in (".json", ".safetensors")
    ),
]
"""Files of a diffusers folder. Black Forest Labs' repository holds the 24 GB transformer twice; once is enough."""


def is_hub_id(text: str) -> bool:
    return HUB_ID.fullmatch(text) is not None and not Path(text).exists()


def download_model(hub_id: str) -> Path:
    """The diffusers folder of a hub id, in the hub's cache; cached files are not downloaded again.

    Raises:
        KontextError: the model does not exist, its licence has not been accepted, or the hub cannot be reached.
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
            f"{name} requires its licence to be accepted: do so at https://huggingface.co/{name}, then `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise KontextError(f"{name} has no revision {revision}") from None
    except RepositoryNotFoundError:
        raise KontextError(
            f"no file or folder {hub_id}, and no public model {name} on the hub: check the spelling, or run "
            "`hf auth login` if it is private"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise KontextError(
            f"no file or folder {hub_id}, and the hub cannot be reached ({type(error).__name__}): give the path of a "
            "model, or try again when online"
        ) from None
