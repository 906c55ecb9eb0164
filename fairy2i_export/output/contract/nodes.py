"""A finished model opened to be looked at, and the operator nodes in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from fairy2i_export.errors import FormatError
from fairy2i_export.onnx_graph.operator import DOMAIN, OP_NAME, Node, is_operator, read_node

_AGAIN = "copy the model again, or export it again"


def open_finished(model_file: Path) -> ir.Model:
    """The model; its weights stay mapped, and are all there.

    Raises:
        FormatError: if the file is missing, empty, cut off or no ONNX model, or a data file is missing or too short.
    """
    if not model_file.is_file():
        raise FormatError(f"{model_file}: expected an ONNX model, found no such file; {_AGAIN}")
    try:
        model = ir.load(model_file)
        # reading them is what finds damage in them: shapes and places are parsed late
        problem = next(filter(None, map(_data_problem, _external_tensors(model))), None)
    except Exception as error:  # protobuf's and onnx_ir's have no common base
        raise FormatError(
            f"{model_file}: expected an ONNX model, but it cannot be read ({_reason(error)}); {_AGAIN}"
        ) from error
    if not len(model.graph):
        raise FormatError(
            f"{model_file}: expected {OP_NAME} nodes or other operators, found an ONNX model without any; the file is empty or "
            f"cut off: {_AGAIN}"
        )
    if problem is not None:
        raise FormatError(f"{model_file}: {problem}; {_AGAIN}")
    return model


def read_nodes(model_file: Path) -> list[Node]:
    """The layers of all operator nodes of a model, in graph order; their weights stay mapped.

    Raises:
        FormatError: if there is none, operands are missing or contradict the format, or the model is damaged.
    """
    model = open_finished(model_file)
    try:
        nodes = [layer for node in model.graph if is_operator(node) for layer in read_node(node)]
    except FormatError:
        raise
    except Exception as error:  # numpy's and onnx_ir's, about a tensor that is not what it says
        raise FormatError(f"{model_file}: an operand cannot be read ({_reason(error)}); {_AGAIN}") from error
    if not nodes:
        raise FormatError(
            f"{model_file}: expected {OP_NAME} nodes of domain {DOMAIN}, found none; fairy2i-export did not write it, or for "
            "another backend (--backend matmulnbits, dense)"
        )
    return nodes


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    graphs = [model.graph, *model.graph.subgraphs()]
    values = (value.const_value for graph in graphs for value in graph.initializers.values())
    attributes = (
        attribute.value
        for node in model.graph.all_nodes()
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.TENSOR
    )
    yield from (tensor for tensor in (*values, *attributes) if isinstance(tensor, ir.ExternalTensor))


def _data_problem(tensor: ir.ExternalTensor) -> str | None:
    """Why the data of a tensor cannot be there."""
    file = Path(tensor.path)
    if not file.is_file():
        return f"expected its data file {tensor.location} beside it, found none"
    size, end = file.stat().st_size, (tensor.offset or 0) + max(tensor.nbytes, tensor.length or 0)
    if size < end:
        return f"expected at least {end:,} bytes in its data file {tensor.location} (tensor {tensor.name}), found {size:,}"
    return None


def _reason(error: BaseException) -> str:
    """The first line of what began it: onnx_ir wraps an error once for every message around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), "")[:300] or type(error).__name__
