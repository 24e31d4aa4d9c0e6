"""Edits a folder of pictures on a server: all requests are sent at once, and the server batches them.

Start a server in one terminal, here the one that `make server` installs (docs/serving.md has the container); it prints
its addresses:

    kontext-export my-bundle --triton my-repository
    kontext-bench serve my-repository

Run this in another, from the root of the repository, with one of the addresses (http://… or grpc://…):

    python examples/server_client.py http://localhost:8000
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kontext.errors import KontextError
from kontext.runtime.sent_pictures import picture_file
from kontext.runtime.server_client import Edit, connect, edit_all

PICTURES = Path(__file__).parent / "pictures"


def main() -> None:
    parser = argparse.ArgumentParser(description="Edits a folder of pictures on a server.")
    parser.add_argument("server", nargs="?", default="http://localhost:8000", help="or grpc://localhost:8001")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder of NAME.png with NAME.txt")
    parser.add_argument("--output", type=Path, default="served", help="folder for the edited pictures")
    parser.add_argument("--steps", type=int, help="(the server's)")
    options = parser.parse_args()

    paths = [path for path in sorted(options.pictures.glob("*.png")) if path.with_suffix(".txt").exists()]
    edits = [
        Edit(path.with_suffix(".txt").read_text().strip(), [picture_file(path)], steps=options.steps)
        for path in paths
    ]
    try:
        answers = edit_all(connect(options.server), edits)
    except KontextError as error:
        raise SystemExit(f"error: {error}") from None
    options.output.mkdir(exist_ok=True)
    for path, edit, answer in zip(paths, edits, answers, strict=True):
        answer.picture.save(options.output / path.name)
        print(f"{path.name}: {edit.prompt}", *answer.warnings)


if __name__ == "__main__":
    main()
