"""`kontext-edit devices [BUNDLE]`: what there is to run a bundle on, which way `--device auto` takes, and why."""

from __future__ import annotations

import argparse
import shlex

from ..command import Parser, local_path
from ..compute_capability import sm_name
from ..errors import KontextError
from .backends.choose import Machine, Way, choose, needed_memory, ways
from .backends.plugins import WHEELS, Plugin, describe_devices, devices_of, is_installed
from .bundle import Bundle
from .units import gigabytes


def parser() -> Parser:
    result = Parser(
        prog="kontext-edit devices",
        description="Lists what there is to run a bundle on, which way --device auto takes, and why.",
    )
    result.add_argument(
        "bundle", type=local_path, nargs="?", metavar="BUNDLE", help="explain the choice for this bundle"
    )
    return result


def run(arguments: argparse.Namespace) -> None:
    bundle = None if arguments.bundle is None else Bundle.open(arguments.bundle)
    machine = Machine.here()
    for line in [*describe_machine(machine), *describe_plugins()]:
        print(line)
    if bundle is None:
        return
    print()
    for line in describe_ways(bundle, machine):
        print(line)


def describe_machine(machine: Machine) -> list[str]:
    gpu = machine.gpu
    about = "none with a working driver"
    if gpu is not None:
        about = f"{gpu.name}, {sm_name(gpu.capability)}, {gigabytes(gpu.memory)}"
    installed = [f"{name} {number}".strip() for name, number in sorted(machine.packages.items())]
    units = "multiplies in bf16" if machine.bf16_units else "no units for bf16"
    libraries = ", ".join(installed) or "no library that runs bundles"
    return [f"NVIDIA GPU: {about}", f"CPU: {units}", f"installed: {libraries}"]


def describe_plugins() -> list[str]:
    """A line for each device of the installed plug-in providers, or why there is none."""
    lines = []
    for device in filter(is_installed, WHEELS):
        try:
            lines += [
                f"--device {device}: {line}"
                for line in describe_devices(devices_of(Plugin(WHEELS[device].module)))
            ]
        except KontextError as error:
            lines.append(f"--device {device}: {error}")
    return lines


def describe_ways(bundle: Bundle, machine: Machine) -> list[str]:
    """A line for each way, the fastest first; the chosen one is marked."""
    chosen, fault = None, ""
    try:
        chosen = choose(bundle, machine).way
    except KontextError as error:
        fault = str(error)
    lines = [f"{bundle.folder}, the fastest way first (* is what --device auto takes):"]
    for way in ways(bundle, machine):
        mark = "*" if way == chosen else " "
        lines.append(f"{mark} {way.title}: {verdict(way)}")
    if chosen is None:
        return [*lines, fault]
    if machine.gpu is not None and chosen.device != "cpu":
        lines.append(f"memory: {needed_memory(bundle, machine)}")
    lines.append(
        f"the same by name: kontext-edit {shlex.quote(str(bundle.folder))} {' '.join(flags(chosen))} …"
    )
    return lines


def verdict(way: Way) -> str:
    if not way.refusal:
        return f"works ({' '.join(flags(way))})"
    return f"no: {way.refusal}" + (f"; to use it: {way.remedy}" if way.remedy else "")


def flags(way: Way) -> list[str]:
    """The flags that select a way by name."""
    words = [*way.options.selected_by.split(" or ")[0].split(), "--device", way.device]
    if way.options.selected_by.startswith("--device"):
        words = ["--device", way.device]
    compute = getattr(way.options, "compute", None)
    words += ["--compute", compute] if compute else []
    return [*words, "--offload"] if getattr(way.options, "offload", False) else words
