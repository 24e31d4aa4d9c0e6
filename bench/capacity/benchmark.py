"""How many GPUs hold a rate of edits at a p95 goal, and what an edit costs: a simulated fleet, from measured times.

SOURCE is a result of `latency`, `serving` or `batch`; or --seconds gives the times. With --check-server the simulation
is held against a real server instead.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import KontextError
from ..flags import add_seed_flag, at_least
from ..machine import describe_machine, machine_line
from ..report import Table, finish
from ..serving.benchmark import describe_served, make_edit
from ..serving.local_server import connected
from .arrivals import Arrivals, Bursty, Poisson
from .check import check_server
from .search import Goal, smallest_fleet
from .service import Service, read_service
from .simulation import Fleet, Outcome, simulate

DAY = 86_400.0
MOST_EDITS = 20_000_000


def add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", type=Path, nargs="?", metavar="SOURCE", help="a result with the times of a GPU"
    )
    parser.add_argument(
        "--seconds",
        type=seconds_list,
        action="append",
        default=[],
        metavar="S[,S…]",
        help="instead: seconds of an edit, or of batches of one, two, …; repeatable, each is a row",
    )
    parser.add_argument(
        "--batch", type=int, help="most edits that the server samples together (the result's)"
    )
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--rate", type=positive, metavar="N", help="edits a second")
    rate.add_argument("--per-day", type=positive, metavar="N", help="edits a day")
    parser.add_argument(
        "--p95", type=positive, metavar="S", help="goal: 95 of 100 edits take at most S seconds"
    )
    parser.add_argument("--gpus", type=int, metavar="N", help="instead of a goal: simulate N GPUs")
    parser.add_argument("--price", type=positive, metavar="P", help="of a GPU for an hour, in any currency")
    parser.add_argument("--hours", type=positive, default=24.0, metavar="H", help="simulated time (24)")
    add_seed_flag(parser, "of arrivals, services and failures (0)")
    add_fleet_flags(parser)
    add_check_flags(parser)


def add_fleet_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arrivals", choices=["poisson", "bursty"], default="poisson", help="(poisson)")
    parser.add_argument(
        "--burst", default="3,0.2,60", metavar="PEAK,SHARE,S", help="rate, share of time, seconds (3,0.2,60)"
    )
    parser.add_argument(
        "--window", type=not_negative, default=0.0, metavar="S", help="a batch waits for more (0)"
    )
    parser.add_argument("--queue", type=int, default=256, metavar="N", help="edits that may wait (256)")
    parser.add_argument(
        "--loras", type=int, default=1, metavar="N", help="LoRAs, asked for equally often (1)"
    )
    parser.add_argument(
        "--swap", type=not_negative, default=0.0, metavar="S", help="seconds to change a LoRA (0)"
    )
    parser.add_argument(
        "--minimum", type=int, metavar="N", help="GPUs that always run; others start on demand (all)"
    )
    parser.add_argument("--cold-start", type=not_negative, default=0.0, metavar="S", help="of a GPU (0)")
    parser.add_argument("--idle", type=positive, default=300.0, metavar="S", help="then a GPU stops (300)")
    parser.add_argument(
        "--failures", type=positive, metavar="H", help="hours between failures of one GPU (none)"
    )
    parser.add_argument("--repair", type=not_negative, default=600.0, metavar="S", help="mean seconds (600)")


def add_check_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check-server",
        metavar="URL|BUNDLE",
        help="hold the simulation against this server, or one over this bundle (needs `make server`)",
    )
    parser.add_argument(
        "--seconds-of-load", type=positive, default=45.0, metavar="S", help="with it: of each load (45)"
    )
    parser.add_argument("--steps", type=int, default=4, help="with it: sampler steps (4)")


def number(text: str, least: float) -> float:
    try:
        value = float(text) if re.fullmatch(r"[\d.]+(e\d+)?", text) else math.nan
    except ValueError:
        value = math.nan
    if not (least <= value < 1e12):
        raise argparse.ArgumentTypeError(
            f"takes a number, {'above 0' if least else '0 or more'}, not {text!r:.40}"
        )
    return value


def positive(text: str) -> float:
    return number(text, 1e-9)


def not_negative(text: str) -> float:
    return number(text, 0.0)


def seconds_list(text: str) -> tuple[float, ...]:
    """Seconds of batches of one, two, …: never fewer for more edits."""
    values = tuple(map(positive, text.split(",")))
    if list(values) != sorted(values):
        raise argparse.ArgumentTypeError(f"takes seconds that do not fall with the batch, not {text!r:.40}")
    return values


def run(arguments: argparse.Namespace) -> None:
    at_least(arguments, queue=0, loras=1, steps=1)
    for name in ("batch", "gpus"):
        if getattr(arguments, name) is not None:
            at_least(arguments, **{name: 1})
    if arguments.minimum is not None:
        at_least(arguments, minimum=0)
    result = run_check(arguments) if arguments.check_server else run_plan(arguments)
    finish(result, tables(result), footer(result), arguments.json)


def run_check(arguments: argparse.Namespace) -> dict[str, Any]:
    for name in ("source", "seconds", "rate", "per_day", "p95", "gpus", "price"):
        if getattr(arguments, name):
            raise KontextError(
                f"--check-server measures the times itself: leave out {name.replace('_', '-')}"
            )
    edit = make_edit(None, None, arguments.steps, None)
    with connected(arguments.check_server) as (client, local):
        served = describe_served(Path(arguments.check_server)) if local else {"model": None, "batch": None}
        batch = arguments.batch or served["batch"]
        if batch is None:
            raise KontextError(
                "a server at a URL does not say how many edits it samples together: add --batch"
            )
        result = check_server(
            client,
            edit,
            batch,
            seconds=arguments.seconds_of_load,
            seed=arguments.seed,
            progress=sys.stderr.isatty(),
        )
    return {**result, "model": served["model"], "local": local}


def run_plan(arguments: argparse.Namespace) -> dict[str, Any]:
    if (arguments.source is None) == (not arguments.seconds):
        raise KontextError("give either SOURCE, a result with the times of a GPU, or --seconds")
    if arguments.rate is None and arguments.per_day is None:
        raise KontextError("give --rate or --per-day: how many edits arrive")
    if (arguments.p95 is None) == (arguments.gpus is None):
        raise KontextError("give either --p95, a goal, or --gpus, a fleet")
    services = services_of(arguments)
    rate = arguments.rate if arguments.rate is not None else arguments.per_day / DAY
    hours = arguments.hours
    if rate * hours * 3600 > MOST_EDITS:
        raise KontextError(f"that is more than {MOST_EDITS:,} edits: simulate fewer --hours")
    arrivals = arrivals_of(arguments, rate)
    goal = None if arguments.p95 is None else Goal(arguments.p95)
    rows = []
    for service in services:
        fleet, outcome = planned(arguments, service, arrivals, goal)
        rows.append(row_of(service, fleet, outcome, arguments.price))
    return {
        "what": "capacity",
        "arrivals": arrivals.to_json(),
        "hours": hours,
        "goal": None if goal is None else {"p95": goal.p95, "rejected": goal.rejected},
        "price": arguments.price,
        "seed": arguments.seed,
        "fleet": fleet_json(arguments),
        "rows": rows,
        "machine": describe_machine(),
    }


def services_of(arguments: argparse.Namespace) -> list[Service]:
    if arguments.source is not None:
        return [read_service(arguments.source, arguments.batch)]
    if arguments.batch is not None:
        raise KontextError("--batch goes with SOURCE: --seconds has a number for each size of a batch")
    return [Service(f"{values[0]:g} s", values) for values in arguments.seconds]


def arrivals_of(arguments: argparse.Namespace, rate: float) -> Arrivals:
    if arguments.arrivals == "poisson":
        return Poisson(rate)
    words = arguments.burst.split(",")
    try:
        peak, share, seconds = map(positive, words)
    except (ValueError, argparse.ArgumentTypeError):
        raise KontextError(
            f"--burst takes three numbers, such as 3,0.2,60, not {arguments.burst!r:.40}"
        ) from None
    if share >= 1 or peak < 1 or peak * share > 1:
        raise KontextError("--burst: the peak is at least 1, the share below 1, and their product at most 1")
    return Bursty(rate, peak, share, seconds)


def fleet_of(arguments: argparse.Namespace, gpus: int, queue: int | None) -> Fleet:
    return Fleet(
        gpus,
        window=arguments.window,
        queue=queue,
        loras=arguments.loras,
        swap=arguments.swap,
        minimum=arguments.minimum,
        cold_start=arguments.cold_start,
        idle=arguments.idle,
        between_failures=math.inf if arguments.failures is None else arguments.failures * 3600,
        repair=arguments.repair,
    )


def fleet_json(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("window", "queue", "loras", "swap", "minimum", "cold_start", "idle", "failures", "repair")
    return {name: getattr(arguments, name) for name in names}


def planned(
    arguments: argparse.Namespace, service: Service, arrivals: Arrivals, goal: Goal | None
) -> tuple[Fleet, Outcome]:
    """The fleet that holds the goal, or the one that was asked for."""
    seconds, progress = arguments.hours * 3600, sys.stderr.isatty()
    least = max(arguments.minimum or 1, 1)
    if goal is not None:
        return smallest_fleet(
            arrivals,
            seconds,
            service,
            fleet_of(arguments, least, arguments.queue),
            goal,
            seed=arguments.seed,
            progress=progress,
        )
    if arguments.gpus < least:
        raise KontextError(f"--minimum {arguments.minimum} is more than --gpus {arguments.gpus}")
    fleet = fleet_of(arguments, arguments.gpus, arguments.queue)
    times = arrivals.times(seconds, np.random.default_rng([arguments.seed, 0]))
    return fleet, simulate(times, service, fleet, seed=arguments.seed)


def row_of(service: Service, fleet: Fleet, outcome: Outcome, price: float | None) -> dict[str, Any]:
    made = len(outcome.latencies)
    hours = outcome.paid / 3600
    return {
        "service": service.to_json(),
        "gpus": fleet.gpus,
        "edits": made,
        "rejected": round(outcome.rejected_share, 6),
        "p50": round(outcome.percentile(50), 4) if made else None,
        "p95": round(outcome.percentile(95), 4) if made else None,
        "busy": round(outcome.busy / outcome.paid, 4) if outcome.paid else 0.0,
        "gpu_hours": round(hours, 2),
        "failures": outcome.failures,
        "cost_per_edit": round(price * hours / made, 6) if price is not None and made else None,
    }


def tables(result: dict[str, Any]) -> list[Table]:
    return [check_table(result) if result["what"] == "capacity check" else plan_table(result)]


def plan_table(result: dict[str, Any]) -> Table:
    """A row for each service."""
    header = ["an edit takes", "GPUs", "p50 [s]", "p95 [s]", "rejected", "busy", "GPU-hours", "an edit costs"]
    rows = [
        [
            row["service"]["name"],
            str(row["gpus"]),
            *("-" if row[name] is None else f"{row[name]:.3g}" for name in ("p50", "p95")),
            f"{row['rejected']:.2%}",
            f"{row['busy']:.0%}",
            f"{row['gpu_hours']:.0f}",
            "-" if row["cost_per_edit"] is None else f"{row['cost_per_edit']:.4f}",
        ]
        for row in result["rows"]
    ]
    return Table(header, rows)


def check_table(result: dict[str, Any]) -> Table:
    """A row for each load: what was measured, and how far the simulation is from it."""
    header = ["arrivals", "edits/s", "edits"]
    titles = (("p50", "p50 [ms]", 1000), ("p95", "p95 [ms]", 1000), ("per_second", "throughput [/s]", 1))
    for _, title, _ in titles:
        header += [title, "simulated", "apart"]
    rows = []
    for row in result["loads"]:
        cells = [
            f"{row['arrivals']['kind']}, {row['load']:.0%} of capacity",
            f"{row['arrivals']['rate']:.1f}",
            str(row["edits"]),
        ]
        for name, _, factor in titles:
            digits = 0 if factor > 1 else 2
            cells += [f"{factor * row[side][name]:.{digits}f}" for side in ("measured", "simulated")]
            cells.append(f"{row['apart'][name]:+.1%}")
        rows.append(cells)
    return Table(header, rows)


def footer(result: dict[str, Any]) -> str:
    if result["what"] == "capacity check":
        worst = max(abs(each) for row in result["loads"] for each in row["apart"].values())
        load = result.get("provenance", {}).get("load_average")
        busy = f" The machine's load was {load[0]:.1f} when this began: 0 is right." if load else ""
        return (
            f"{result['steps']} steps, batches of up to {result['batch']}, {result['seconds']:g} s of each load; the "
            f"furthest figure is {worst:.0%} apart (goal: {result['goal']:.0%}). The simulation has the same arrivals, "
            f"closed loops' times of the same server, and its speed during the load.{busy}\n"
            f"{machine_line(result['machine'])}"
        )
    arrivals, goal, fleet = result["arrivals"], result["goal"], result["fleet"]
    rate = f"{arrivals['rate']:.4g} edits a second, {arrivals['kind']} arrivals, {result['hours']:g} hours"
    wanted = (
        "" if goal is None else f" Goal: p95 of {goal['p95']:g} s, at most {goal['rejected']:.1%} rejected."
    )
    parts: Sequence[tuple[bool, Callable[[], str]]] = (
        (fleet["window"] > 0, lambda: f"batches wait {fleet['window']:g} s for more"),
        (fleet["loras"] > 1, lambda: f"{fleet['loras']} LoRAs, {fleet['swap']:g} s to change one"),
        (fleet["minimum"] is not None, lambda: f"{fleet['minimum']} GPUs always run, others start on demand"),
        (fleet["cold_start"] > 0, lambda: f"a start takes {fleet['cold_start']:g} s"),
        (
            fleet["failures"] is not None,
            lambda: f"a GPU fails every {fleet['failures']:g} hours and is repaired in {fleet['repair']:g} s",
        ),
    )
    said = "; ".join(text() for given, text in parts if given)
    price = "" if result["price"] is None else f" A GPU costs {result['price']:g} an hour."
    return (
        f"Simulated: {rate}; at most {fleet['queue']} edits wait{'; ' + said if said else ''}.{wanted}{price} "
        f"Seed {result['seed']}."
    )
