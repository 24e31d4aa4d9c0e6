"""Reads damaged files, as `test_readers` asks: READER FIRST LAST BASE SCRATCH. SCRATCH/seed is `try_all`'s progress."""

from __future__ import annotations

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from readers import READERS, Reader
from trying import limit_memory, try_all, verdict

ADDRESS_SPACE = 8 << 30


def damaged(reader: Reader, name: str, seed: int) -> bytes:
    return reader.make(random.Random(f"{name} {seed}"))


def main(name: str, first: int, last: int, base: Path, scratch: Path) -> None:
    limit_memory(ADDRESS_SPACE)
    reader = READERS[name](base, scratch)
    for seed in range(5):
        verdict(reader.read, damaged(reader, name, -1 - seed))
    try_all(lambda seed: damaged(reader, name, seed), reader.read, range(first, last), scratch / "seed")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
