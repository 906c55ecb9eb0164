"""Pass "find": every node that multiplies by a matrix, those that nobody can rewrite included, with the reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import onnx_ir as ir

from fairy2i_export.onnx_graph.operator import DOMAIN, is_operator, layer_names
from fairy2i_export.rewrite.linears import Linear
from fairy2i_export.rewrite.patterns import match, pattern_of
from fairy2i_export.rewrite.values.constants import Constants

_SCOPES = "pkg.torch.onnx.name_scopes"  # metadata of torch's exporter: the modules around a node, outermost first


def find_linears(model: ir.Model, constants: Constants) -> list[Linear]:
    """All products with a matrix in graph order, bodies of If, Loop and Scan included."""
    taken: dict[str, int] = {}
    found = []
    for node in model.graph.all_nodes():
        linear = _candidate(node, constants)
        if linear is not None:
            found.append(_named_once(linear, taken))
    for function in model.functions.values():
        if function.domain == DOMAIN:
            continue
        for node in function:
            if pattern_of(node) is not None:
                reason = f"inside the model-local function {function.name}, whose weights are its inputs"
                linear = Linear(node.name or node.op_type, (node.name or "",), node, None, reason=reason)
                found.append(_named_once(linear, taken))
    return found


def operator_nodes(model: ir.Model) -> list[ir.Node]:
    """The nodes of our operators that are in the graph already."""
    return [node for node in model.graph.all_nodes() if is_operator(node)]


def operator_names(model: ir.Model) -> list[str]:
    """All names of those nodes and their layers: what a glob may match although nothing is left to be done."""
    return [name for node in operator_nodes(model) for name in (*layer_names(node), *_names(node, None))]


def _candidate(node: ir.Node, constants: Constants) -> Linear | None:
    found = match(node, constants)
    if found is None:
        return None
    reason = found.reason
    if not reason and node.device_configurations:
        reason = "divided among devices: its device configuration speaks of the weight that would go"
    aliases = list(dict.fromkeys(_names(node, found.value)))
    return Linear(aliases[0], tuple(aliases), node, found.value, found.transposed, found.on_left, reason)


def _names(node: ir.Node, value: ir.Value | None) -> Iterator[str]:
    """What the user may know the layer as, best first."""
    module = _module(node)
    if module:
        yield module
    if value is not None and value.is_initializer() and value.name:
        if value.name.endswith(".weight"):
            yield value.name.removesuffix(".weight")
        if node.name:
            yield node.name
        yield value.name
    elif node.name:
        yield node.name
    yield next((output.name for output in node.outputs if output.name), node.op_type)


def _module(node: ir.Node) -> str:
    """The innermost module around a node, where torch's exporter recorded it."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, ""))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return ""
    if not isinstance(scopes, list) or len(scopes) < 2:
        return ""
    return str(scopes[-2])  # the last one is the node itself


def _named_once(linear: Linear, taken: dict[str, int]) -> Linear:
    count = taken[linear.name] = taken.get(linear.name, 0) + 1
    if count > 1:
        linear.name = f"{linear.name}#{count}"
        linear.aliases = (linear.name, *linear.aliases)
    return linear
