"""The published data sets of edits, by the layout of their files, and folders and lists of a user's own.

| set | where | layout |
|---|---|---|
| KontextBench | black-forest-labs/kontext-bench | `test/metadata.jsonl` with file_name, key, category, instruction |
| GEdit-Bench | stepfun-ai/GEdit-Bench | tables: key, task_type, instruction, instruction_language, input_image |
| ImgEdit | sysuyy/ImgEdit | `basic_edit.json`: {key: {id, prompt, edit_type}}; pictures by id in `singleturn` |
| MagicBrush | osunlp/MagicBrush | tables: img_id, turn_index, source_img, mask_img, instruction, target_img |
| Emu Edit | facebook/emu_edit_test_set | tables: instruction, image, task, split, idx, hash |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import KontextError
from ...regular_files import parse_json, read_regular
from .samples import Sample, Samples
from .tables import SUFFIXES, Cell, Table, is_file, open_table

GEDIT, IMGEDIT = "GEdit-Bench", "ImgEdit"
"""Sets whose scorers look for pictures at places of their own."""

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

LIST = "metadata.jsonl"
"""A folder's list of pictures, as Hugging Face's image folders have it."""

MOST_BYTES = 64 << 20
"""Of a list of instructions, and of one."""

PROMPTS = ("prompt", "instruction", "text")
FILES = ("file_name", "image", "input_image", "source")
"""What lists call the two things that an edit needs, the first that is there."""

SPLITS = ("test", "dev", "validation")
"""Of a set that has several, the first that is there is read."""


def read_edit_set(path: Path, language: str = "en") -> Samples:
    """The edits of a data set or of a user's own folder or list, with what of them cannot be used. Pictures are not
    decoded yet.

    Args:
        path: a folder, or a list of edits in a file: .jsonl, .json, .parquet or .arrow.
        language: of instructions, where a set has several; "all" for all.

    Raises:
        KontextError: there is nothing of the kind, or it has no edits in that language.
        ModuleNotFoundError: a library for tables is not installed.
    """
    found = read_layout(path)
    if found is None:
        raise KontextError(
            f"{path} holds no edits: give a folder with NAME.txt for each NAME.png, with {LIST} or with a published "
            "set, or a list of edits (.jsonl, .parquet, .arrow)"
        )
    chosen = [each for each in found.samples if language in ("all", each.language) or not each.language]
    if found.samples and not chosen:
        known = ", ".join(dict.fromkeys(each.language for each in found.samples))
        raise KontextError(f"{path} has no instructions in {language!r}: it has {known}")
    return replace(found, samples=chosen)


def read_layout(path: Path) -> Samples | None:
    """The edits at `path`, whatever their layout; None if it has none that is known."""
    if path.is_file():
        reader = FILE_READERS.get(path.suffix.lower())
        return reader(path) if reader else None
    if not path.is_dir():
        raise KontextError(f"{path} does not exist")
    for name in IMGEDIT_PLACES:
        if (path / name).is_file():
            return read_imgedit(path / name)
    for folder in (path, path / "test"):
        if (folder / LIST).is_file():
            return read_list(folder / LIST, path.name)
    if tables := tables_in(path):
        return read_tables(tables, path.name)
    return read_folder(path)


# -- lists: KontextBench, and a user's own --


def read_list(path: Path, name: str = "") -> Samples:
    """A line of JSON for each edit: the picture's file beside the list, the instruction, perhaps key and category."""
    samples: list[Sample] = []
    skipped: list[str] = []
    for number, line in enumerate(
        read_text(path).split("\n"), 1
    ):  # strings may hold other separators of lines
        if not line.strip():
            continue
        try:
            entry = parse_json(line)
            file, prompt = first_text(entry, FILES), first_text(entry, PROMPTS)
        except (ValueError, TypeError, AttributeError):
            file = prompt = None
        if file is None or prompt is None:
            skipped.append(f"{path.name}, line {number}: expected an object with file_name and prompt")
            continue
        sample = Sample(
            prompt,
            path.parent / file,
            key=text(entry.get("key")) or Path(file).stem,
            category=text(entry.get("category")),
        )
        add(sample, f"{path.name}, line {number}", samples, skipped)
    return Samples(name or path.stem, samples, skipped)


def first_text(entry: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The first of these fields that holds text."""
    return next((value for name in names if isinstance(value := entry.get(name), str) and value), None)


def add(sample: Sample, where: str, samples: list[Sample], skipped: list[str]) -> None:
    """Adds a sample to the one list, or what is wrong with it to the other."""
    if not sample.prompt.strip():
        skipped.append(f"{where}: its instruction is empty")
    elif isinstance(sample.source, Path) and not is_file(sample.source):
        skipped.append(f"{where}: {str(sample.source)[:200]} is missing")
    else:
        samples.append(sample)


# -- a folder of pictures --


def read_folder(folder: Path) -> Samples | None:
    """NAME.png, or another format, beside NAME.txt with its instruction."""
    samples: list[Sample] = []
    skipped: list[str] = []
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES):
        try:
            text = read_regular(path.with_suffix(".txt"), MOST_BYTES, "an instruction").decode().strip()
        except FileNotFoundError:
            skipped.append(f"{path.name}: there is no {path.stem}.txt")
        except (OSError, ValueError, KontextError) as error:
            skipped.append(f"{path.name}: {path.stem}.txt cannot be read: {error}")
        else:
            add(Sample(text, path, key=path.stem), path.name, samples, skipped)
    return Samples(folder.name, samples, skipped) if samples or skipped else None


# -- ImgEdit --


def read_imgedit(path: Path) -> Samples:
    """The edits of one turn; their pictures are in the folder `singleturn` of the benchmark's archive."""
    samples: list[Sample] = []
    skipped: list[str] = []
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise KontextError(f"{path} is not an object of edits")
    roots = [folder / name for folder in (path.parent, path.parent.parent) for name in PICTURE_FOLDERS]
    for key, entry in entries.items():
        given = entry if isinstance(entry, dict) else {}
        file, prompt, category = (given.get(name) for name in ("id", "prompt", "edit_type"))
        if not (isinstance(file, str) and isinstance(prompt, str) and isinstance(category, str)):
            skipped.append(f"{path.name}, {key}: expected id, prompt and edit_type")
            continue
        found = next((root / file for root in roots if is_file(root / file)), path.parent / file)
        add(Sample(prompt, found, key=key, category=category), f"{path.name}, {key}", samples, skipped)
    return Samples(IMGEDIT, samples, skipped)


IMGEDIT_FILE = "basic_edit.json"
IMGEDIT_PLACES = [folder + IMGEDIT_FILE for folder in ("", "eval_prompts/", "Benchmark/", "singleturn/")]
PICTURE_FOLDERS = (".", "singleturn", "Benchmark/singleturn")


# -- tables --


def tables_in(folder: Path) -> list[Path]:
    """The Parquet and Arrow files of a folder: of one split, if they name several."""
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in SUFFIXES and path.is_file() and not path.name.startswith("cache-")
    )

    def split(path: Path) -> str:
        """Of data/test-00000-of-00004.parquet or test/data-00000-of-00001.arrow."""
        beginning = path.name.partition("-")[0]
        return beginning if beginning != "data" else path.parent.name

    for name in SPLITS:
        if chosen := [path for path in found if split(path) == name]:
            return chosen
    return found


def read_tables(paths: Sequence[Path], name: str) -> Samples:
    samples: list[Sample] = []
    skipped: list[str] = []
    layout = None
    for path in paths:
        table = open_table(path)
        layout = next((each for each in TABLE_LAYOUTS if each.columns <= set(table.columns)), None)
        if layout is None:
            listed = ", ".join(table.columns)
            raise KontextError(f"{path} is not a table of edits: it has the columns {listed[:200]}")
        names = {column: table.values(column) for column in table.columns if column in layout.texts}
        for row in range(table.rows):
            where = f"{path.name}, row {row + 1}"
            prompts = {each: names[each][row] for each in PROMPTS if each in names}
            if wrong := [each for each, value in prompts.items() if not isinstance(value, str | None)]:
                skipped.append(f"{where}: its {wrong[0]} is no text")
                continue
            texts = {column: text(values[row]) for column, values in names.items()}
            add(layout.sample(table, row, texts), where, samples, skipped)
    return Samples(layout.name if layout and layout.name else name, samples, skipped)


def text(value: object) -> str:
    return "" if value is None else str(value)


@dataclass(frozen=True)
class TableLayout:
    """A set's columns: those that tell it from others, those of text, and a row's sample."""

    name: str
    columns: Set[str]
    texts: Set[str]
    sample: Callable[[Table, int, Mapping[str, str]], Sample]


def gedit_sample(table: Table, row: int, texts: Mapping[str, str]) -> Sample:
    source = "input_image_raw" if "input_image_raw" in table.columns else "input_image"
    return Sample(
        texts["instruction"],
        Cell(table, row, source),
        key=texts["key"],
        category=texts["task_type"],
        language=texts["instruction_language"],
    )


def magicbrush_sample(table: Table, row: int, texts: Mapping[str, str]) -> Sample:
    key = f"{texts['img_id']}-{texts['turn_index']}"
    source, mask, target = (
        Cell(table, row, name) if name in table.columns else None
        for name in ("source_img", "mask_img", "target_img")
    )
    turn = texts["turn_index"]
    return Sample(
        texts["instruction"],
        source,
        key=key,
        mask=mask,
        target=target,
        session=texts["img_id"],
        turn=int(turn) if turn.isdecimal() else 0,
    )


def emu_sample(table: Table, row: int, texts: Mapping[str, str]) -> Sample:
    return Sample(texts["instruction"], Cell(table, row, "image"), key=texts["hash"], category=texts["task"])


def own_sample(table: Table, row: int, texts: Mapping[str, str]) -> Sample:
    """Of a user's own table: the columns that a list has as fields."""
    file = next(name for name in FILES if name in table.columns)
    prompt = next(texts[name] for name in PROMPTS if name in texts)
    return Sample(
        prompt,
        Cell(table, row, file),
        key=texts.get("key") or f"{table.path.stem}-{row}",
        category=texts.get("category", ""),
    )


def own_layout(file: str, prompt: str) -> TableLayout:
    return TableLayout("", {file, prompt}, {*PROMPTS, "key", "category"}, own_sample)


TABLE_LAYOUTS = (
    TableLayout(
        GEDIT,
        {"key", "task_type", "instruction", "instruction_language", "input_image"},
        {"key", "task_type", "instruction", "instruction_language"},
        gedit_sample,
    ),
    TableLayout(
        "MagicBrush",
        {"img_id", "turn_index", "source_img", "instruction"},
        {"img_id", "turn_index", "instruction"},
        magicbrush_sample,
    ),
    TableLayout(
        "Emu Edit",
        {"instruction", "image", "task", "hash"},
        {"instruction", "task", "hash"},
        emu_sample,
    ),
    *(own_layout(file, prompt) for file in FILES for prompt in PROMPTS),
)


# -- files --


def read_text(path: Path) -> str:
    try:
        return read_regular(path, MOST_BYTES, "a list of edits").decode("utf-8-sig")
    except OSError as error:
        raise KontextError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise KontextError(f"{path} is not UTF-8") from None


def read_json(path: Path) -> Any:
    try:
        return parse_json(read_text(path))
    except ValueError as error:
        raise KontextError(f"{path} is not JSON: {error}") from None


FILE_READERS: dict[str, Callable[[Path], Samples]] = {
    ".jsonl": read_list,
    ".json": read_imgedit,
    **dict.fromkeys(SUFFIXES, lambda path: read_tables([path], path.stem)),
}
