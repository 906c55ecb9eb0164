"""Nodes are taken out of a graph together: onnx_ir looks at all outputs of the graph in every removal, however small."""

from __future__ import annotations

import onnx_ir as ir


class Removal:
    """Nodes that nothing uses any more. What they read is free at once, they themselves go with :meth:`finish`."""

    def __init__(self) -> None:
        self._nodes: dict[ir.Node, None] = {}
        self._places: dict[ir.Graph, dict[ir.Value, list[int]]] = {}  # of values among the outputs of their graph

    def __contains__(self, node: ir.Node) -> bool:
        return node in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def add(self, node: ir.Node) -> None:
        """Take out a node whose values have no users left."""
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
        self._nodes[node] = None

    def replace(self, graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
        """Give a new value the name, the type and the users of an old one, outputs of the graph included."""
        new.name = old.name
        new.type = old.type if old.type is not None else new.type
        new.shape = old.shape if old.shape is not None else new.shape
        if old.is_graph_output():
            if graph not in self._places:
                places = self._places.setdefault(graph, {})
                for index, value in enumerate(graph.outputs):
                    places.setdefault(value, []).append(index)
            for index in self._places[graph].pop(old):
                graph.outputs[index] = new
        ir.convenience.replace_all_uses_with(old, new)

    def finish(self) -> None:
        """Take the nodes out of their graphs."""
        by_graph: dict[ir.Graph | ir.Function, list[ir.Node]] = {}
        for node in self._nodes:
            if node.graph is not None:
                by_graph.setdefault(node.graph, []).append(node)
        for graph, nodes in by_graph.items():
            graph.remove(nodes, safe=True)
        self._places.clear()
