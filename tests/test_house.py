"""Rules of the house: who may import whom, nothing unpickled, packaging and documents that match the code."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import json
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:  # Python 3.10 has none
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("model", "tiny", "quant", "kernels", "export", "runtime", "batch", "rest", "integrations", "bench")
ANYONE = (
    "bundle_folder",
    "errors",
    "files",
    "command",
    "safetensors_header",
    "decibels",
    "compute_capability",
    "installation",
    "interrupts",
    "locks",
    "lora_flag",
    "temporary_folder",
    "regular_files",
    "entry_points",
)

# Room → the rooms whose modules it may import, beside its own and `ANYONE`, inside functions too. The most specific
# row counts. What stands alone in export/ is a room of its own; cli/ is on top, weights/ at the bottom.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "model": (),
    "tiny": ("model",),
    "quant": ("model",),
    "kernels": (),
    "kernels.variants": ("kernels", "model.dtypes", "quant.formats"),  # lists what to compile for each format
    "export.progress": (),
    "export.weights": ("model", "quant"),
    "export.graph": ("export.weights", "model", "quant", "runtime"),
    "export.bundle": ("export.graph", "model", "quant", "runtime"),
    "export.edit_sets": ("runtime",),
    # Calibration runs edits, for the embedded model on scenes of its own.
    "export.calibration": (
        *("export.progress", "export.graph", "export.bundle", "export.edit_sets"),
        *("model", "quant", "runtime", "tiny"),
    ),
    "export.layouts": (
        *("export.progress", "export.weights", "export.graph", "export.bundle", "export.calibration"),
        *("export.edit_sets", "model", "quant", "runtime"),
    ),
    "export.lora": ("export.progress", "model", "quant", "runtime"),
    "export.kernels": ("export.progress", "export.bundle", "kernels", "runtime"),
    "export.exporter": (
        *("export.progress", "export.weights", "export.graph", "export.bundle", "export.calibration"),
        *("export.edit_sets", "export.kernels", "model", "quant", "kernels", "runtime"),
    ),
    "export.engines": ("export.progress", "export.bundle", "quant.formats", "runtime"),
    "export.server": ("export.bundle", "runtime"),
    "export.cli": ("export", "model", "quant", "kernels", "runtime"),
    "runtime": (),
    "runtime.backends.torch": ("runtime", "model", "quant", "kernels"),
    "batch": ("runtime",),
    "rest": ("runtime",),
    "integrations": (),
    "bench": FOLDERS,
}
# What the runtime may import that Python does not bring: the base installation, and what a backend or a server needs.
RUNTIME_LIBRARIES: dict[str, tuple[str, ...]] = {
    "runtime": (
        *("numpy", "PIL", "onnxruntime", "safetensors", "tokenizers", "tomli", "tqdm"),
        *("tensorrt", "tensorrt_rtx", "tritonclient", "triton_python_backend_utils"),
    ),
    "runtime.backends.openvino": ("numpy", "openvino"),
    "runtime.backends.torch": ("numpy", "safetensors", "torch", "triton"),
    "runtime.cpp": ("tokenizers",),  # writes a table of Unicode for the C++ sources
}
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
MOST_LINES = 600
"""Of a module; shorter ones are easier to read, but one that holds one idea may be this long."""

CROSS_CUTTING = {
    "test_house": "the whole repository",
    "bench/html_report/test_browser": "the report in a real Chromium",
    "export/bundle/test_kills": "what publishes, killed at its system calls, and two exports at once",
    "export/test_fp16_overflow": "fp16 where FLUX leaves its range, from checkpoint to picture",
    "export/test_max_sequence_length": "prompts of another length, from a checkpoint to latents",
    "install/test_cpp_providers": "the C++ runtime on ONNX Runtime's CUDA provider and plug-in providers",
    "install/test_optimum": "--to optimum in the pipelines of optimum, in a fresh environment",
    "install/test_plugin_providers": "published plug-in providers of ONNX Runtime, in a fresh environment",
    "install/test_cuda_placement": "every format on ONNX Runtime's CUDA provider, over stub CUDA libraries",
    "install/test_install": "the built distributions, in fresh environments",
    "kernels/test_tiles": "the tiles of every kernel",
    "model/test_fuzz_readers": "every reader, on damaged files",
    "rest/test_page": "the page in a real Chromium",
    "runtime/cpp/test_batches": "several pictures at once, content filters and JPEG files in C++",
    "runtime/cpp/test_devices": "devices of the C++ runtime",
    "runtime/cpp/test_embedding": "the installed C++ library in another project",
    "runtime/cpp/test_loras": "LoRAs at run time in C++ and C",
    "runtime/cpp/test_previews": "previews in C++ and C",
    "runtime/cpp/test_references": "places, canvases, sizes and warnings of references in C++",
    "runtime/cpp/test_repainting": "masks, strength and negative prompts in C++ and C",
    "runtime/cpp/test_tokenizer": "token ids of the C++ runtime",
    "runtime/server/test_faults": "faults of callers and models, in a real server",
    "runtime/server/test_front": "the front before a real server",
    "runtime/server/test_models": "both models, in a real server",
}
"""Tests of more than one module: file → what they are about."""


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


SHARED = [ROOT / f"{name}.py" for name in ANYONE]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


LATER = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(
    node: ast.AST, *, at_import: bool = False, types: bool = True
) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements in `node`; with `at_import` only those that run when the module is imported, without
    `types` none that only type checkers see."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif (at_import and isinstance(child, LATER)) or (
            (at_import or not types) and is_for_type_checkers(child)
        ):
            continue
        else:
            yield from imports(child, at_import=at_import, types=types)


def imported(path: Path, *, at_import: bool = False, types: bool = True) -> Iterator[str]:
    """Absolute dotted names that a file imports, `from x import y` as `x.y`."""
    package = ["kontext", *path.relative_to(ROOT).parent.parts]
    for node in imports(tree(path), at_import=at_import, types=types):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*module, alias.name]) for alias in node.names)


def label(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    """Dotted, without `kontext.`; a package's is its folder's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in [*sources(*FOLDERS), *SHARED]}


def inside(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def most_specific(name: str, rooms: Iterable[str]) -> str | None:
    """The longest of `rooms` that the module is in."""
    return max((room for room in rooms if inside(name, room)), key=len, default=None)


def imported_modules(path: Path, *, at_import: bool = False) -> set[str]:
    """This package's modules that a file imports, as keys of `MODULES`."""
    found = set()
    for name in imported(path, at_import=at_import):
        name = name.removeprefix("kontext.") if inside(name, "kontext") else ""
        while name and name not in MODULES:  # a function, say
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {"", module_name(path)}


@pytest.mark.parametrize("path", sources(*FOLDERS), ids=label)
def test_imports_follow_the_table(path: Path) -> None:
    name = module_name(path)
    if name == "export":
        return
    room = most_specific(name, MAY_IMPORT)
    assert room is not None, f"{label(path)} is in no room of the table"
    allowed = (room, *MAY_IMPORT[room], *ANYONE)
    for other in sorted(imported_modules(path)):
        assert any(inside(other, each) for each in allowed), (
            f"{label(path)} imports kontext.{other}; {room} may import {', '.join(allowed)}"
        )


def test_the_table_has_rooms_that_exist() -> None:
    assert all(room in MODULES or (ROOT / room).is_dir() for room in MAY_IMPORT)
    assert all(other in MODULES for others in MAY_IMPORT.values() for other in others)


def circles(graph: Mapping[str, set[str]]) -> list[str]:
    """Where a directed graph goes round: one circle, as its nodes in order, or nothing."""
    done: set[str] = set()

    def walk(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node not in done:
            for other in sorted(graph.get(node, ())):
                if found := walk(other, [*way, node]):
                    return found
            done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := walk(node, []))), [])


def test_modules_import_each_other_in_no_circle() -> None:
    graph = {name: imported_modules(path, at_import=True) for name, path in MODULES.items()}
    assert " → ".join(circles(graph)) == ""


def test_rooms_import_each_other_in_no_circle() -> None:
    """Imports inside functions and for type checkers count. A module that stands beside rooms is one itself."""

    def room(name: str) -> str:
        folder = MODULES[name].parent
        return name if any(folder.glob("*/__init__.py")) else ".".join(folder.relative_to(ROOT).parts)

    graph: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        graph.setdefault(room(name), set()).update(room(other) for other in imported_modules(path))
    assert " → ".join(circles({name: others - {name} for name, others in graph.items()})) == ""


@pytest.mark.parametrize("path", sources("runtime"), ids=label)
def test_the_runtime_needs_nothing_heavy(path: Path) -> None:
    room = most_specific(module_name(path), RUNTIME_LIBRARIES)
    assert room is not None
    needed = (
        {name.split(".")[0] for name in imported(path, types=False)}
        - {"kontext"}
        - set(sys.stdlib_module_names)
    )
    assert needed <= set(RUNTIME_LIBRARIES[room])


@pytest.mark.parametrize("path", [*sources(*FOLDERS, "examples"), *SHARED], ids=label)
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & UNPICKLERS
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        assert call not in {"torch.load", "torch.save", "eval", "exec"}, (
            f"{label(path)}:{node.lineno}: {call}"
        )
        for keyword in node.keywords:
            unpickles = keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
            assert not unpickles, f"{label(path)}:{node.lineno} allows pickles"
            shell = keyword.arg == "shell" and ast.unparse(keyword.value) != "False"
            assert not shell, f"{label(path)}:{node.lineno} goes through a shell"


@pytest.mark.parametrize("path", [*sources(*FOLDERS), *SHARED], ids=label)
def test_pictures_are_opened_in_one_place(path: Path) -> None:
    """runtime/images.py checks a file's format and limits first; of Pillow's 40 formats some start other programs.
    bench/diffusers_edit.py stands for a user's script and imports nothing of ours."""
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    opened = [call for call in calls if ast.unparse(call.func) in {"Image.open", "PIL.Image.open"}]
    assert len(opened) == (label(path) in {"runtime/images.py", "bench/diffusers_edit.py"})
    assert all("formats" in {keyword.arg for keyword in call.keywords} for call in opened)
    assert not {name for name in imported(path) if name.startswith(("PIL.Image.open", "imageio", "cv2"))}


@pytest.mark.parametrize("path", [*sources(*FOLDERS, "examples"), *SHARED], ids=label)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(tree(path)), f"{label(path)} has no module docstring"
    assert len(path.read_text().splitlines()) <= MOST_LINES, f"{label(path)} is too long to be read in one go"


def test_temporary_folders_are_cleaned_up_after_kills() -> None:
    """`tempfile` deletes what it makes only where the process ends by itself; a TemporaryFile has no name."""
    for path in [*sources(*FOLDERS), *SHARED]:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "tempfile":
                assert node.attr in ("gettempdir", "TemporaryFile"), f"{label(path)} uses {ast.unparse(node)}"


def test_packages_are_the_folders_on_disk() -> None:
    """The folders of the product, each with its rooms; neither tests/ nor examples/."""
    on_disk = {"kontext"} | {
        ".".join(["kontext", *path.parent.relative_to(ROOT).parts])
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == on_disk
    checked = {package for package in on_disk if package.count(".") == 1} | {"kontext.examples"}
    assert set(PROJECT["tool"]["mypy"]["packages"]) == checked


def test_tests_mirror_the_modules() -> None:
    """tests/x/test_y.py tests x/y.py or the package x/y; in tests/x/y, test_y.py tests the package x/y as a whole."""
    found = set()
    for path in sources("tests"):
        if not path.name.startswith("test_"):
            continue
        folder = path.parent.relative_to(ROOT / "tests")
        subject = path.stem.removeprefix("test_")
        places = [ROOT / folder / f"{subject}.py", ROOT / folder / subject]
        if folder.name == subject:
            places.append(ROOT / folder)
        name = (folder / path.stem).as_posix()
        if folder.name == "torture":  # of whole readers and servers
            assert f"`{path.name}`" in (ROOT / "docs" / "reliability.md").read_text(), (
                f"docs/reliability.md has no row for {name}.py"
            )
        elif name in CROSS_CUTTING:
            assert not any(place.exists() for place in places), f"{name} tests a module: not cross-cutting"
            found.add(name)
        else:
            assert any(place.exists() for place in places), (
                f"tests/{name}.py tests no {(folder / subject).as_posix()}.py"
            )
    assert found == set(CROSS_CUTTING)


def test_console_scripts_exist() -> None:
    for target in PROJECT["project"]["scripts"].values():
        module, _, function = target.partition(":")
        path = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
        names = {node.name for node in tree(path).body if isinstance(node, ast.FunctionDef)}
        assert function in names, target
    for module in SCRIPTS.values():
        path = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
        assert "main" in {node.name for node in tree(path).body if isinstance(node, ast.FunctionDef)}, module


def test_every_requirement_of_the_tested_extras_is_pinned() -> None:
    """All but Triton, whose version PyTorch's CUDA builds decide (see constraints.txt)."""
    pins = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [
        *PROJECT["project"]["dependencies"],
        *extras["export"],
        *extras["bench"],
        *extras["openvino"],
        *extras["rtx"],
        *extras["batch"],
        *extras["rest"],
        *extras["test"],
    ]
    names = {re.split(r"[\[<>=!~ ;]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names - {"triton"} <= pins
    assert "triton" not in pins


# -- the documents --

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
MODULES_OF_COMMANDS: dict[str, str] = importlib.import_module("kontext.entry_points").MODULES
SCRIPTS: dict[str, str] = {
    name: MODULES_OF_COMMANDS[target.partition(":")[2]]
    for name, target in PROJECT["project"]["scripts"].items()
}
OTHER_PROGRAMS = {
    *("pip", "pytest", "git", "cd", "cp", "curl", "docker", "cmake"),
    *("kontext-edit-cpp", "fetch-onnxruntime.sh"),
}


def blocks(document: Path, language: str) -> list[str]:
    text = document.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def shell_commands(document: Path) -> list[list[str]]:
    """The commands of a document's ```sh blocks, one list of words each, continued lines joined."""
    lines = [line for block in blocks(document, "sh") for line in block.replace("\\\n", " ").splitlines()]
    commands = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while "&&" in words:
            commands.append(words[: words.index("&&")])
            words = words[words.index("&&") + 1 :]
        commands.append(words)
    return [words for words in commands if words]


def inline_commands(document: Path) -> list[list[str]]:
    """What stands in the text as `kontext-… --flag` or `python -P -m kontext.…`."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`]+)`", text) + re.findall(r"^    (?! )(.+)", text, re.MULTILINE)
    programs = (*(f"{name} " for name in SCRIPTS), "python -P -m kontext.")
    return [shlex.split(span) for span in spans if span.startswith(programs)]


@cache
def help_of(module: str, *subcommand: str) -> str:
    """What `python -m` prints, run in this process: a fresh one would import the same libraries again for each."""
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(printed),
    ):
        warnings.simplefilter("ignore", RuntimeWarning)  # that the module may have been imported before
        patch.setattr(sys, "argv", [module, *subcommand, "--help"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert not ended.value.code, f"{module} {' '.join(subcommand)} --help"
    return printed.getvalue()


def usage(module: str, words: Sequence[str]) -> tuple[str, int]:
    """The help that a command line is for, the subcommand's where it names one, and how many words name that."""
    text, depth = help_of(module), 0
    while depth < len(words) and re.fullmatch(r"[a-z][a-z-]*", words[depth]) and words[depth] in text.split():
        program = text.split()[1]
        below = help_of(module, *words[: depth + 1])
        if below.split()[1 : 3 + depth] != [program, *words[: depth + 1]]:
            break
        text, depth = below, depth + 1
    return text, depth


def check_flags(document: Path, module: str, words: Sequence[str]) -> None:
    text, depth = usage(module, words)
    assert depth or not re.search(r"(?<!\[)COMMAND \.\.\.", text.partition("\n\n")[0]), (
        f"{document.name}: {words} names no subcommand"
    )
    flags = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    missing = flags - set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", text))
    assert not missing, f"{document.name}: `{module} {' '.join(words)}` uses {sorted(missing)}"


def check_command(document: Path, words: Sequence[str]) -> None:
    """Program, subcommand and flags exist; what follows `--` is a command too."""
    if "--" in words:
        if (command := words[words.index("--") + 1 :]) != ["COMMAND"]:
            check_command(document, command)
        words = words[: words.index("--")]
    program = words[0].rsplit("/", 1)[-1]
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        goals = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        assert set(goals) <= set(targets), words
    elif program in SCRIPTS:
        check_flags(document, SCRIPTS[program], words[1:])
    elif program == "python" and words[1] == "-P":  # nothing that lies in the current directory
        module = words[3]
        path = ROOT.joinpath(*module.split(".")[1:])
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), words
        check_flags(document, module, words[4:])
    elif program == "python" and words[1] == "-m":
        assert not inside(words[2], "kontext"), f"{document.name}: python -P -m {words[2]}"
    elif program == "python":
        assert (ROOT / words[1]).is_file(), f"{document.name}: there is no {words[1]}"
    else:
        assert program in OTHER_PROGRAMS, words


@pytest.mark.parametrize("document", DOCUMENTS, ids=label)
def test_documented_commands_and_flags_exist(document: Path) -> None:
    for words in [*shell_commands(document), *inline_commands(document)]:
        check_command(document, words)


@pytest.mark.parametrize("document", DOCUMENTS, ids=label)
def test_documented_python_and_json_can_be_read(document: Path) -> None:
    """Python compiles, and what it takes from this package exists."""
    for block in blocks(document, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and inside(node.module, "kontext"):
                names = {alias.name for alias in node.names}
                if inside(
                    node.module, "kontext.integrations"
                ):  # whose libraries are in environments of their own
                    body = tree(MODULES[node.module.removeprefix("kontext.")]).body
                    assert names <= {each.name for each in body if isinstance(each, ast.ClassDef)}, (
                        node.module
                    )
                    continue
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name) for name in names), node.module
    for block in blocks(document, "json"):
        json.loads(block)


@pytest.mark.parametrize("document", DOCUMENTS, ids=label)
def test_documented_extras_exist(document: Path) -> None:
    known = set(PROJECT["project"]["optional-dependencies"])
    for extras in re.findall(r"(?:kontext-export|'\.)\[([a-z,]+)\]", document.read_text(encoding="utf-8")):
        assert set(extras.split(",")) <= known


def anchors(document: Path) -> set[str]:
    """What a link can name after `#`: the headings, as GitHub spells them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=label)
def test_links_inside_the_repository_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", text):
        if "://" not in target:
            path = document.parent / target if target else document
            assert path.exists(), f"{document.name} links to {target}"
            assert not anchor or anchor in anchors(path), f"{document.name} links to {target}#{anchor}"


def test_the_map_has_every_document() -> None:
    listed = re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"} == set(listed)


def test_no_machine_paths_are_committed() -> None:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"/(?:work|root|home/\w+)/(?:main|notes|shared|\.)")
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        if (
            path.suffix in {".py", ".md", ".toml", ".txt", ".json"}
            and path.is_file()
            and path != Path(__file__)
        ):
            assert not pattern.search(path.read_text(encoding="utf-8", errors="replace")), name
