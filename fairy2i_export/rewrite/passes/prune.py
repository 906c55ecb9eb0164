"""Pass "prune": what only the replaced nodes used. Anything that was unused before stays."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from fairy2i_export.rewrite.removal import Removal


def prune(orphans: Iterable[ir.Value]) -> tuple[int, int]:
    """Remove nodes and initializers that nothing uses any more, starting from the inputs of replaced nodes.

    Returns:
        How many nodes and how many initializers were removed.
    """
    initializers, removal = 0, Removal()
    pending = list(dict.fromkeys(orphans))
    while pending:
        value = pending.pop()
        if value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        producer = value.producer()
        if producer is not None:
            used = any(output.uses() or output.is_graph_output() for output in producer.outputs)
            if used or producer.graph is None or producer in removal:
                continue
            pending.extend(x for x in producer.inputs if x is not None)
            removal.add(producer)
        elif value.name and value.graph is not None and value.name in value.graph.initializers:
            del value.graph.initializers[value.name]
            initializers += 1
    removal.finish()
    return len(removal), initializers
