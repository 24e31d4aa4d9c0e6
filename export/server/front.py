"""The front of a repository: nginx and Lua that check each request before the server sees it, against the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from ...runtime.server import contract
from ...runtime.server.contract import Limits, Tensor

FILES = ("nginx.conf", "check.lua", "strict_json.lua", "start.sh", "Dockerfile")
"""Templates in the folder `front`; `contract.lua` is written beside them."""

Tree: TypeAlias = "str | Mapping[str, Tree]"

BYTES = {"BOOL": 1, "INT32": 4, "FP32": 4, "UINT64": 8, "FP64": 8}
"""Of one element; strings have a length of their own."""


def contract_table(limits: Limits) -> str:
    """contract.lua: tensors and parameters that callers may send, as check.lua reads them."""
    own = dict.fromkeys((contract.BASE64, contract.METADATA, contract.PREVIEWS, contract.PROGRESS), "true")
    outputs = sorted({each.name for listed in contract.OUTPUTS.values() for each in listed})
    table: dict[str, Tree] = {
        "inputs": {each.name: input_table(each, limits) for each in contract.INPUTS},
        "outputs": dict.fromkeys(outputs, "true"),
        "parameters": own,
        "infer_parameters": {**own, "binary_data_output": "true"},
        "infer_keys": dict.fromkeys(("id", "inputs", "outputs", "parameters"), "true"),
        "input_keys": dict.fromkeys(("name", "datatype", "shape", "data", "parameters"), "true"),
    }
    return f"-- Written by kontext-export from the models' contract.\nreturn {lua(table)}\n"


def input_table(tensor: Tensor, limits: Limits) -> dict[str, str]:
    """One input, whose batch is always 1: its datatype, and how many elements it has."""
    (side,) = tensor.shape
    least, most = (1, limits.max_references) if side == -1 else (side, side)
    return {
        "datatype": f'"{tensor.datatype}"',
        "bytes": str(BYTES.get(tensor.datatype, 0)),
        "least": str(least),
        "most": str(most),
    }


def lua(value: Tree, indent: str = "  ") -> str:
    """A table in Lua; the texts in it are Lua already."""
    if isinstance(value, str):
        return value
    rows = [f"{indent}{name} = {lua(each, indent + '  ')},\n" for name, each in value.items()]
    return "{\n" + "".join(rows) + indent[:-2] + "}"
