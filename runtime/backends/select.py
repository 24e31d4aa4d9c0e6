"""From a backend's name or options to the backend. Only the selected backend is imported."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, get_args

from ...errors import BundleError, KontextError
from ...installation import install_command
from ...interrupts import interrupt_in
from .options import (
    AUTO,
    BACKENDS,
    BackendOptions,
    OnnxRuntimeOptions,
    OpenVINOOptions,
    TensorRTOptions,
    TorchOptions,
)
from .runnable import Formats

if TYPE_CHECKING:
    from ..bundle import Bundle
    from .choose import Choice
    from .protocol import Backend


def find_options(backend: str | BackendOptions, device: str) -> BackendOptions:
    """A backend's options as they are, or the defaults of a backend named in `BACKENDS`; compiled engines and
    OpenVINO are also selected by the device, and "auto" is otherwise ONNX Runtime.

    Raises:
        KontextError: there is no such backend.
    """
    if isinstance(backend, get_args(BackendOptions)):
        return backend
    if backend not in (AUTO, *BACKENDS):
        raise KontextError(
            f"backend {backend!r} is not known: choose from {', '.join((AUTO, *BACKENDS))}, or pass options such as "
            "TorchOptions()"
        )
    if backend == TorchOptions.name:
        return TorchOptions()
    if backend == OpenVINOOptions.name:
        return OpenVINOOptions()
    if backend == OnnxRuntimeOptions.name:
        return OnnxRuntimeOptions()
    by_device = (OnnxRuntimeOptions, TensorRTOptions, OpenVINOOptions)
    return next((each for each in by_device if device in each.devices), OnnxRuntimeOptions)()


def open_backend(options: BackendOptions, device: str, bundle: Bundle, *, low_memory: bool) -> Backend:
    """The backend that the options are of, ready to run.

    Args:
        options, device: as `options.check` accepts them.
        bundle: whose graphs it runs.
        low_memory: keep no memory between operators with ONNX Runtime on a CPU, nor after a network with OpenVINO.

    Raises:
        KontextError: a library or the device is missing; says what to install or to use instead.
    """
    if isinstance(options, TorchOptions):
        try:
            from .torch.backend import TorchBackend
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            raise KontextError(
                f"the torch backend needs PyTorch, which is not installed: {install_command('torch')}"
            ) from None
        return TorchBackend(bundle, device, options)
    if isinstance(options, TensorRTOptions):
        from .tensorrt.backend import TensorRTBackend

        return TensorRTBackend(bundle, device, options)
    if isinstance(options, OpenVINOOptions):
        from .openvino.device import load_openvino

        load_openvino()
        from .openvino.backend import OpenVINOBackend

        return OpenVINOBackend(bundle, device, options, low_memory=low_memory)
    from .onnxruntime import OnnxRuntimeBackend

    graphs = {name: entry.path for name, entry in bundle.graphs.items()}
    return OnnxRuntimeBackend(
        graphs,
        device,
        options,
        read=bundle.graph_bytes,
        files=bundle.linked_files,
        low_memory=low_memory,
        formats=Formats.of(bundle),
    )


def open_fastest(bundle: Bundle, *, low_memory: bool) -> tuple[Backend, Choice]:
    """The fastest backend that runs `bundle` here, and why it is that one; one that fails to start is left out with a
    warning.

    Raises:
        BundleError: the bundle is at fault, and not what would run it.
        KontextError: none runs it.
    """
    from .choose import Machine, choose
    from .onnxruntime_library import warn_of_hidden_gpu

    warn_of_hidden_gpu()
    machine, failed = Machine.here(), list[str]()
    while True:
        choice = choose(bundle, machine, without=failed)
        way = choice.way
        try:
            way.options.check(way.device, bundle)
            return open_backend(way.options, way.device, bundle, low_memory=low_memory), choice
        except BundleError:
            raise
        except KontextError as error:
            if interrupt_in(error):  # Ctrl-C while a library is imported
                raise
            warnings.warn(f"{way.title} does not start: {error}", stacklevel=3)
            failed.append(way.title)
