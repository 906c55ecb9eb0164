"""Nodes for linear layers and for the token embedding, one strategy per way of storing the weight."""

from __future__ import annotations

import onnx_ir as ir

from fairy2i_export.compile.options import Embedding
from fairy2i_export.compile.plan import NBITS_BLOCK, Linear
from fairy2i_export.compile.tasks import WeightSource
from fairy2i_export.onnx_graph.formats import BACKENDS
from fairy2i_export.onnx_graph.writer import GraphWriter

CONTRIB = "com.microsoft"


def linear_node(graph: GraphWriter, weights: WeightSource, linear: Linear, x: ir.Value) -> ir.Value:
    """Append the node, called after its module, that computes ``x @ weight.T + bias``."""
    bias = None if linear.bias is None else graph.initializer(weights.vector(linear.bias))
    if linear.treatment == "fairy2i":
        return BACKENDS[weights.options.backend].nodes(graph, weights, linear, x, bias)
    if linear.treatment == "dense":
        product = graph.op(linear.name, "MatMul", [x, _transposed_weight(graph, weights, linear)])
    else:
        product = _nbits(graph, weights, linear, x, bits=8 if linear.treatment == "int8" else 4)
    return product if bias is None else graph.op(f"{linear.name}/bias", "Add", [product, bias])


def _transposed_weight(graph: GraphWriter, weights: WeightSource, linear: Linear) -> ir.Value:
    # MatMul wants [in, out]; under a name of its own, because a tied lm_head shares the tensor with the embedding
    return graph.initializer(weights.dense(linear.weight, name=f"{linear.name}.weight_transposed", transposed=True))


def _nbits(graph: GraphWriter, weights: WeightSource, linear: Linear, x: ir.Value, bits: int) -> ir.Value:
    data, scales = weights.block_quantized(linear.weight, linear.name, bits, blocked=True)
    return graph.op(
        linear.name,
        "MatMulNBits",
        [x, graph.initializer(data), graph.initializer(scales)],
        domain=CONTRIB,
        K=linear.in_features,
        N=linear.out_features,
        bits=bits,
        block_size=NBITS_BLOCK,
        accuracy_level=4,  # int8 activations: without it ORT dequantizes 8-bit weights at every call, 100 times slower
    )


def embedding_node(graph: GraphWriter, weights: WeightSource, name: str, kind: Embedding, ids: ir.Value) -> ir.Value:
    """Append the nodes that look up float32 rows [batch, sequence, hidden] of the embedding."""
    tensor = f"{name}.weight"
    if kind == "int8":
        data, scales = weights.block_quantized(tensor, name, 8, blocked=False)
        inputs = [graph.initializer(data), ids, graph.initializer(scales)]
        return graph.op(
            name,
            "GatherBlockQuantized",
            inputs,
            domain=CONTRIB,
            gather_axis=0,
            quantize_axis=1,
            block_size=NBITS_BLOCK,
            bits=8,
        )
    if kind == "float16":
        rows = graph.op(name, "Gather", [graph.initializer(weights.dense(tensor, "float16")), ids], axis=0)
        return graph.op(f"{name}/cast", "Cast", [rows], to=ir.DataType.FLOAT)
    return graph.op(name, "Gather", [graph.initializer(weights.dense(tensor)), ids], axis=0)
