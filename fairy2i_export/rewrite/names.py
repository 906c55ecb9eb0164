"""Names for new values of a graph."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir


class Names:
    """Hands out names that no value of the model has."""

    def __init__(self, model: ir.Model) -> None:
        self._taken: set[str] = set()
        self._counts: dict[str, int] = {}  # last number behind a name, for many values that want the same
        for graph in (model.graph, *model.graph.subgraphs()):
            self._take(graph.inputs)
            self._take(graph.initializers.values())
        for node in model.graph.all_nodes():
            self._take(node.outputs)

    def _take(self, values: Iterable[ir.Value]) -> None:
        self._taken.update(value.name for value in values if value.name)

    def new(self, wanted: str) -> str:
        name, count = wanted, self._counts.get(wanted, 1)
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._counts[wanted] = count
        self._taken.add(name)
        return name
