"""From the ids of every text to the batch [batch, sequence] that a model reads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from fairy2i_export.onnx_graph.tokenizer.description import Description
from fairy2i_export.onnx_graph.tokenizer.nodes import GraphBuilder


class Ragged(NamedTuple):
    """Ids of several texts: int64 values [total], and per text [batch] where its ids start and how many they are."""

    values: ir.Value
    starts: ir.Value
    lengths: ir.Value


def framed_model(graph: GraphBuilder, description: Description, ragged: Ragged, metadata: dict[str, str]) -> onnx.ModelProto:
    """Put the tokenizer's own tokens around every text and pad on the right.

    Outputs are input_ids and attention_mask, int64 [batch, sequence]. The input ``add_special_tokens`` (bool, true by
    default) says whether tokens are put around: texts made by a chat template have theirs already.
    """
    before, after = len(description.before), len(description.after)
    wanted = graph.node(
        "Cast", graph.input("add_special_tokens", ir.DataType.BOOL, [1], np.array([True])), to=int(ir.DataType.INT64)
    )
    n_before = graph.node("Mul", wanted, graph.constant([before]))
    n_after = graph.node("Mul", wanted, graph.constant([after]))
    # one table of all ids that may be needed: before, after, padding, texts
    table = graph.node(
        "Concat", graph.constant([*description.before, *description.after, description.pad]), ragged.values, axis=0
    )
    axis = graph.constant([1])
    lengths = graph.node("Unsqueeze", ragged.lengths, axis)
    starts = graph.node("Add", graph.node("Unsqueeze", ragged.starts, axis), graph.constant([before + after + 1]))
    text_end = graph.node("Add", lengths, n_before)
    end = graph.node("Add", text_end, n_after)
    # a zero joins in, so that a batch of no texts has a maximum too
    longest = graph.node(
        "ReduceMax",
        graph.node("Concat", graph.node("Reshape", end, graph.constant([-1])), graph.constant([0]), axis=0),
        keepdims=0,
    )
    column = graph.node("Unsqueeze", graph.node("Range", graph.constant(0), longest, graph.constant(1)), graph.constant([0]))
    in_text = graph.node("Add", graph.node("Sub", column, n_before), starts)
    in_after = graph.node("Add", graph.node("Sub", column, text_end), graph.constant([before]))
    inside = graph.node("Less", column, end)
    place = graph.node("Where", inside, in_after, graph.constant([before + after]))
    place = graph.node("Where", graph.node("Less", column, text_end), in_text, place)
    place = graph.node("Where", graph.node("Less", column, n_before), column, place)
    ids = graph.node("Gather", table, place, axis=0)
    mask = graph.node("Cast", inside, to=int(ir.DataType.INT64))
    shape = ["batch", "sequence"]
    outputs = {"input_ids": (ids, ir.DataType.INT64, shape), "attention_mask": (mask, ir.DataType.INT64, shape)}
    return graph.model(outputs, metadata)
