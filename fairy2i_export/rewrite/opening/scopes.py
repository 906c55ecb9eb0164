"""Names of values: each is made once, and whatever a node reads is made somewhere it can see."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fairy2i_export.rewrite.opening.walk import node_label, text

_GIVEN = -1  # the place of inputs and initializers: before the first node


@dataclass
class Scopes:
    """What a look at all names of a model found.

    Attributes:
        problem: what is wrong, and where; empty if nothing is.
        sorted: whether every node comes after those whose values it reads.
    """

    problem: str = ""
    sorted: bool = True
    _outer: list[tuple[dict[str, int], int]] = field(
        default_factory=list
    )  # names with their places, place of the body's node

    def look(self, model: Any) -> Scopes:
        """Look at a ModelProto."""
        self._graph(model.graph, "the graph", inputs=[value.name for value in model.graph.input])
        for function in model.functions:
            where = f"function {text(function.name)}"
            names = self._declare(where, function.input, (), function.node)
            self._nodes(function.node, names, where)
            self._outputs(function.output, names, where)
        return self

    def _graph(self, graph: Any, where: str, inputs: Iterable[str]) -> None:
        stored = [tensor.name for tensor in graph.initializer]
        names = self._declare(where, inputs, stored, graph.node)
        self._nodes(graph.node, names, where)
        self._outputs([value.name for value in graph.output], names, where)

    def _declare(self, where: str, inputs: Iterable[str], stored: Iterable[str], nodes: Any) -> dict[str, int]:
        """Name -> place of the node that makes it. A stored value may have the name of an input: it is its default."""
        names: dict[str, int] = {}
        for kind in (inputs, stored):
            seen: set[str] = set()
            for name in kind:
                if name in seen:
                    self._report(f"{where}: two inputs or two initializers are called {text(name)}; rename one")
                seen.add(name)
                names[name] = _GIVEN
        for place, node in enumerate(nodes):
            for name in node.output:
                if name and name in names:
                    self._report(f"{where}: {node_label(node)} makes {text(name)}, which is made elsewhere too; rename one")
                names[name] = place
        names.pop("", None)
        return names

    def _nodes(self, nodes: Any, names: dict[str, int], where: str) -> None:
        for place, node in enumerate(nodes):
            if not node.op_type:
                self._report(f"{where}: {node_label(node)} does not say which operator it is; the file is damaged")
            for name in node.input:
                if name:
                    self._read(name, node, [*self._outer, (names, place)], where)
            self._outer.append((names, place))
            for attribute in node.attribute:
                bodies = [attribute.g] if attribute.HasField("g") else []
                for body in (*bodies, *attribute.graphs):
                    inside = f"the graph in attribute {text(attribute.name)} of {node_label(node)}"
                    self._graph(body, inside, inputs=[value.name for value in body.input])
            self._outer.pop()

    def _read(self, name: str, node: Any, scopes: list[tuple[dict[str, int], int]], where: str) -> None:
        for names, place in reversed(scopes):
            if name in names:
                self.sorted = self.sorted and names[name] < place
                return
        self._report(f"{where}: {node_label(node)} reads {text(name)}, which nothing makes; the model is incomplete")

    def _outputs(self, outputs: Iterable[str], names: dict[str, int], where: str) -> None:
        for name in outputs:
            if name not in names:
                self._report(f"{where}: its output {text(name)} is made by nothing in it; the model is incomplete")

    def _report(self, problem: str) -> None:
        self.problem = self.problem or problem
