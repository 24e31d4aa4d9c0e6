"""diffusers' reader of single files, for networks that are smaller than FLUX.1's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture
def small_converter() -> Iterator[Callable[[int], None]]:
    """Its converter has FLUX.1's width as a constant: puts another one there until the test ends."""
    pytest.importorskip("diffusers")
    from diffusers.loaders import single_file_model, single_file_utils

    with pytest.MonkeyPatch.context() as patch:

        def convert(width: int) -> None:
            source = inspect.getsource(single_file_utils.convert_flux_transformer_checkpoint_to_diffusers)
            assert "inner_dim = 3072" in source
            names = dict(vars(single_file_utils))
            exec(source.replace("inner_dim = 3072", f"inner_dim = {width}"), names)
            converter = names["convert_flux_transformer_checkpoint_to_diffusers"]
            entry = single_file_model.SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
            patch.setitem(entry, "checkpoint_mapping_fn", converter)

        yield convert
