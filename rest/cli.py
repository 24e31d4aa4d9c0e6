"""`kontext-serve BUNDLE`: an endpoint of OpenAI's shape before a bundle or, with `--upstream URL`, before NVIDIA Triton
Inference Server; and a page to try it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ..command import Parser, local_path, run_command
from ..errors import KontextError
from ..runtime.cli import add_backend_flags, backend_options, open_pipeline, refuse_local_flags
from ..runtime.server.contract import Limits, read_limit

if TYPE_CHECKING:
    from .calls import Engine
    from .faults import Fault
    from .keys import Keys
    from .metrics import Metrics


def parser() -> Parser:
    result = Parser(
        prog="kontext-serve",
        description="Serves a bundle over HTTP with the fields and answers of OpenAI's image API, and a page.",
    )
    result.add_argument(
        "bundle",
        type=partial(local_path, advice="name a server by --upstream URL"),
        nargs="?",
        metavar="BUNDLE",
        help="a folder that kontext-export wrote",
    )
    result.add_argument(
        "--upstream",
        metavar="URL",
        help="instead of BUNDLE: NVIDIA Triton Inference Server, such as http://HOST:8000 or grpc://HOST:8001",
    )
    result.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    result.add_argument(
        "--port", type=int, default=8080, help="port to listen at; 0: a free one (default: 8080)"
    )
    result.add_argument(
        "--api-keys",
        type=local_path,
        metavar="FILE",
        help="a key in each line; callers must send one. Needed wherever other machines can call",
    )
    result.add_argument(
        "--insecure",
        action="store_true",
        help="listen for other machines without keys, because something in front checks who calls",
    )
    result.add_argument(
        "--limit",
        type=partial(read_limit, flag="--limit"),
        action="append",
        default=[],
        metavar="NAME=N",
        help="what one request may ask for, such as max_steps=50; repeatable; docs/serving.md lists the names",
    )
    result.add_argument(
        "--max-wait",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="of an edit in the queue (default: 600)",
    )
    result.add_argument(
        "--grace",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="after SIGTERM or Ctrl-C, in which edits are finished; then they are cancelled (default: 30)",
    )
    result.add_argument(
        "--filters",
        type=local_path,
        metavar="FILE",
        help="Python file with the content filters input_filter and output_filter",
    )
    result.add_argument(
        "--loras",
        type=local_path,
        metavar="FOLDER",
        help="LoRAs that `kontext-export lora` has made ready, for requests to name (a bundle with --lora-slots)",
    )
    add_backend_flags(result)
    result.add_argument("--quiet", action="store_true", help="log errors only")
    return result


def run(arguments: argparse.Namespace) -> int:
    if (arguments.bundle is None) == (arguments.upstream is None):
        raise KontextError("name either a BUNDLE or an --upstream (kontext-serve --help shows the flags)")
    for name in ("max_wait", "grace"):
        if not 0 <= getattr(arguments, name) <= 86400:
            raise KontextError(f"--{name.replace('_', '-')} must be from 0 to 86400 seconds")
    limits = replace(Limits(), **dict(arguments.limit))
    if arguments.upstream is not None:
        own = {"--filters": arguments.filters, "--loras": arguments.loras, "--lora": arguments.lora or None}
        refuse_local_flags(arguments, "--upstream", *own.items())
    # Errors that need no library, then those that need no model.
    from .keys import read_keys

    keys = None if arguments.api_keys is None else read_keys(arguments.api_keys)
    from .listening import bind, is_loopback

    listener = bind(arguments.host, arguments.port)
    with listener:
        open_to_others = keys is None and not is_loopback(listener)
        if open_to_others and not arguments.insecure:
            raise KontextError(
                f"--host {arguments.host} lets other machines in: give --api-keys FILE, or --insecure if something in "
                "front checks who calls"
            )
        return serve(arguments, listener, keys, limits)


def open_engine(arguments: argparse.Namespace, limits: Limits) -> tuple[Engine, Metrics]:
    """What runs the edits, and its metrics. Raises KontextError if it cannot be opened."""
    from .metrics import Metrics

    if arguments.upstream is not None:
        from .upstream import Upstream

        metrics = Metrics(Upstream.model)
        return Upstream(arguments.upstream, limits, metrics), metrics
    from .filters import load_filters
    from .local import Local

    filters: tuple[Any, Any] = (None, None) if arguments.filters is None else load_filters(arguments.filters)
    pipe = open_pipeline(
        arguments, backend_options(arguments), input_filter=filters[0], output_filter=filters[1]
    )
    if pipe.choice is not None:
        print(pipe.choice, file=sys.stderr)
    metrics = Metrics(pipe.bundle.name)
    return Local(pipe, limits, metrics, arguments.loras), metrics


def serve(arguments: argparse.Namespace, listener: socket.socket, keys: Keys | None, limits: Limits) -> int:
    """Serves until a signal. Raises KontextError if the engine cannot be opened, or the first edit fails."""
    from .listening import make_server
    from .service import make_service

    log_to_stderr(logging.ERROR if arguments.quiet else logging.INFO)
    engine, metrics = open_engine(arguments, limits)
    hosts = None
    if keys is None and not arguments.insecure:
        hosts = frozenset({"localhost", "127.0.0.1", "::1", arguments.host.lower()})
    service = make_service(
        engine,
        metrics,
        limits,
        max_wait=arguments.max_wait,
        keys=keys,
        hosts=hosts,
        patient=arguments.upstream is not None,
    )
    faults: list[Fault] = []

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        watch = asyncio.create_task(keep_ready())
        yield
        watch.cancel()

    async def keep_ready() -> None:
        from .faults import Fault

        try:
            await service.readiness.run()
        except Fault as fault:
            faults.append(fault)
            server.should_exit = True

    service.app.router.lifespan_context = lifespan
    server = make_server(service.guard, arguments.grace, service.answers.cancel_all)
    raise_file_limit()
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"{engine.model}: http://{shown}:{port}", flush=True)
    server.run(sockets=[listener])
    if faults:
        service.answers.cancel_all()
        raise KontextError(f"the first edit failed: {faults[0].message}")
    service.close()
    return 0


def log_to_stderr(level: int) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, least in (("kontext.serve", level), ("uvicorn.error", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(least)
        logger.propagate = False


def raise_file_limit() -> None:
    """Each connection is an open file, of which a shell allows 1024."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536), most))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code, see `run_command`."""
    return run_command(lambda: run(parser().parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
