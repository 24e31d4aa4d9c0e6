"""`kontext-export`: a checkpoint in, a bundle out; and what else there is to do with either.

`kontext-export [export] [MODEL] -o OUT` exports a checkpoint, adds compiled kernels and engines to a bundle and lays it
out for NVIDIA Triton Inference Server; `kontext-export inspect FILE…` describes files, `kontext-export digest BUNDLE`
prints what pins a bundle, `kontext-export sensitivity` measures how layers take quantization.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from ...bundle_folder import is_bundle
from ...command import Parser, run_command
from . import digest_command, export_command, inspect_command, lora_command, sensitivity_command

DEFAULT = "export"
"""The command if none is named."""

COMMANDS = {
    DEFAULT: export_command,
    "inspect": inspect_command,
    "digest": digest_command,
    "lora": lora_command,
    "sensitivity": sensitivity_command,
}


def parser() -> Parser:
    """The parser of all commands; `main` puts the default command before arguments that name none."""
    result = Parser(prog="kontext-export")
    commands = result.add_subparsers(required=True)
    others = ""
    for name, command in COMMANDS.items():
        if name != DEFAULT:
            title = f"kontext-export {name}"
            others += f"\n  {title:<28}{command.SUMMARY}"
    for name, command in COMMANDS.items():
        title = "kontext-export" if name == DEFAULT else f"kontext-export {name}"
        added = commands.add_parser(name, prog=title, description=command.DESCRIPTION)
        command.add_flags(added)
        added.set_defaults(run=command.run)
        if name == DEFAULT:
            added.formatter_class = argparse.RawDescriptionHelpFormatter
            added.epilog = f"other commands (add --help for their flags):{others}"
    return result


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The options; `run` is the command to run with them."""
    named = words[:1] and words[0] in COMMANDS
    if named and ((Path(words[0]) / "model_index.json").exists() or is_bundle(Path(words[0]))):
        warnings.warn(
            f"{words[0]} is taken for the command; write ./{words[0]} for the folder of that name",
            stacklevel=1,
        )
    return parser().parse_args(words if named else [DEFAULT, *words])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 2 for errors that the user can fix, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = argparse.Namespace()

    def work() -> int:
        vars(options).update(vars(parse(words)))
        return int(options.run(options))

    return run_command(work, lambda: export_command.progress_kept(options))


if __name__ == "__main__":
    sys.exit(main())
