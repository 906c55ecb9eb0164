"""Whether ONNX Runtime takes a rewritten model, and whether it took the source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from fairy2i_export.errors import ModelError, reason_of
from fairy2i_export.onnx_graph.operator import DOMAIN
from fairy2i_export.output.contract.trial import try_model
from fairy2i_export.rewrite.opening.scopes import Scopes

# domains that ONNX Runtime has operators of itself
_KNOWN = {
    "", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training", "com.microsoft",
    "com.microsoft.experimental", "com.microsoft.nchwc", "com.microsoft.dml", "com.ms.internal.nhwc", "org.pytorch.aten", DOMAIN,
}  # fmt: skip


def check_result(result: Path, source: Path) -> str:
    """Make sure that a rewritten model can be used.

    Args:
        result: the model that was written.
        source: the model it was made of.

    Returns:
        What could not be checked here, as a sentence; empty if ONNX Runtime takes the model.

    Raises:
        ModelError: ONNX Runtime refuses the model; says whether it refuses the source, too.
    """
    written = onnx.load(result, load_external_data=False)
    unknown = _unknown_domains(written)
    if unknown:
        _check_structure(written, result, source)
        return (
            f"the model has operators of {', '.join(map(repr, unknown))}, which ONNX Runtime gets from a library of their own: "
            "its structure was checked, but it was not loaded"
        )
    after = try_model(result)
    if not after.refusal:
        return ""
    before = try_model(source)
    if before.refusal and not before.no_kernel:
        raise ModelError(f"{source}: ONNX Runtime refuses the model as it is: {before.refusal}; nothing was written")
    if before.no_kernel and after.no_kernel:
        _check_structure(written, result, source)
        return f"ONNX Runtime has no implementation for this processor, neither before nor after: {before.refusal}"
    raise ModelError(
        f"{source}: ONNX Runtime loads this model but not what was made of it: {after.refusal}; nothing was written, please "
        "report it"
    )


def _unknown_domains(model: onnx.ModelProto) -> list[str]:
    local = {(function.domain, function.name) for function in model.functions}
    used = {(node.domain, node.op_type) for nodes in _node_lists(model) for node in nodes}
    return sorted({domain for domain, name in used if domain not in _KNOWN and (domain, name) not in local})


def _node_lists(model: onnx.ModelProto) -> Iterator[Any]:
    """The nodes of all graphs and functions."""
    pending = [model.graph.node, *(function.node for function in model.functions)]
    while pending:
        nodes = pending.pop()
        yield nodes
        for attribute in (attribute for node in nodes for attribute in node.attribute):
            bodies = [attribute.g] if attribute.HasField("g") else []
            pending.extend(body.node for body in (*bodies, *attribute.graphs))


def _check_structure(written: onnx.ModelProto, result: Path, source: Path) -> None:
    """What can be said without the operators: names, and what ONNX's checker says if it has nothing against the source."""
    problem = Scopes().look(written).problem
    if not problem and not _checker(source):
        problem = _checker(result)
    if problem:
        raise ModelError(f"{source}: what was made of it is no ONNX model: {problem}; nothing was written, please report it")


def _checker(path: Path) -> str:
    try:
        onnx.checker.check_model(path)
    except Exception as error:  # its exceptions have no common base
        return reason_of(error)
    return ""
