"""The token embedding, one strategy per way of storing it."""

from __future__ import annotations

import onnx_ir as ir

from fairy2i_export.onnx_graph.choices import Embedding
from fairy2i_export.onnx_graph.formats.base import Weights
from fairy2i_export.onnx_graph.formats.rounded import BLOCK
from fairy2i_export.onnx_graph.writer import CONTRIB, GraphWriter


def embedding_node(graph: GraphWriter, weights: Weights, name: str, kind: Embedding, ids: ir.Value) -> ir.Value:
    """Append the nodes that look up float32 rows [batch, sequence, hidden] of the embedding."""
    tensor = f"{name}.weight"
    if kind == "int8":
        data, scales = weights.rounded(tensor, name, 8, blocked=False)
        inputs = [graph.initializer(data), ids, graph.initializer(scales)]
        return graph.op(
            name,
            "GatherBlockQuantized",
            inputs,
            domain=CONTRIB,
            gather_axis=0,
            quantize_axis=1,
            block_size=BLOCK,
            bits=8,
        )
    if kind == "shared":
        return _shared_rows(graph, weights, name, ids)
    if kind == "float16":
        rows = graph.op(name, "Gather", [graph.initializer(weights.dense(tensor, "float16")), ids], axis=0)
        return graph.op(f"{name}/cast", "Cast", [rows], to=ir.DataType.FLOAT)
    return graph.op(name, "Gather", [graph.initializer(weights.dense(tensor)), ids], axis=0)


def _shared_rows(graph: GraphWriter, weights: Weights, name: str, ids: ir.Value) -> ir.Value:
    """Rows of the matrix that an int8 lm_head multiplies by, which lies in blocks of columns: [vocabulary, blocks, BLOCK]."""
    data, scales = weights.rounded(f"{name}.weight", name, 8, blocked=True)
    vocabulary, blocks, _ = data.shape.numpy()
    by_block = graph.op(f"{name}/scales", "Reshape", [graph.initializer(scales), graph.ints(vocabulary, blocks, 1)])
    rows = graph.op(
        name,
        "GatherBlockQuantized",
        [graph.initializer(data), ids, by_block],
        domain=CONTRIB,
        gather_axis=0,
        quantize_axis=2,
        block_size=BLOCK,
        bits=8,
    )
    return graph.op(f"{name}/rows", "Reshape", [rows, graph.ints(0, 0, blocks * BLOCK)])
