"""What all attention layers share: positions, lengths, masks and rotary tables, computed once per run.

A row of attention_mask may begin with zeros (left padding, as transformers batches texts) or have zeros between the prompt and
the tokens generated since (right padding, as onnxruntime-genai does). GroupQueryAttention keeps keys and values in slots
0, 1, 2, ... of the cache and takes the last valid slot of every row:

* zeros in front fill slots of their own: they count in the last slot, and a bias hides them;
* zeros behind take no slot: GroupQueryAttention overwrites what they left.

So with L leading zeros and C ones the last slot is L + C - 1, and the token at position p stands in slot L + p.
Rotating by slots instead of positions gives the same attention, which depends on differences of the two.
"""

from __future__ import annotations

import onnx_ir as ir

from fairy2i_export.decoder.description import Decoder
from fairy2i_export.decoder.rope import Rope
from fairy2i_export.onnx_graph.rope_tables import rotary_tables
from fairy2i_export.onnx_graph.writer import CONTRIB, GraphWriter

# added to the score of a hidden slot; far below any score, finite (a row of infinities alone would become NaN and spread
# through the cache), and within the range of float16
_HIDDEN = -60000.0


class Positions:
    """The shared values of one graph.

    Attributes:
        seqlens_k: int32 [batch], the last valid slot of every row.
        total_length: int32 scalar, columns of the attention mask.
        ids: int64 [batch, sequence], the position of every token of this run.
    """

    def __init__(
        self, graph: GraphWriter, decoder: Decoder, ids: ir.Value, mask: ir.Value, positions: int, cache: ir.DataType
    ) -> None:
        """Append the nodes.

        Args:
            graph: to append to.
            decoder: the model.
            ids: input_ids [batch, sequence].
            mask: attention_mask [batch, total].
            positions: the longest context: rows of the rotary tables.
            cache: type of keys and values, hence of the bias.
        """
        self._graph, self._decoder, self._positions, self._cache = graph, decoder, positions, cache
        self._biases: dict[int | None, ir.Value] = {}
        g = graph
        counted = g.op("positions/count", "CumSum", [mask, g.scalar(1)])
        before_text = g.op("positions/before_text", "Equal", [counted, g.scalar(0)])
        before = g.op("positions/before", "Cast", [before_text], to=ir.DataType.INT64)
        self._padding = g.op("positions/padding", "ReduceSum", [before, g.ints(1)], keepdims=1)  # L: [batch, 1]
        length = g.op("positions/length", "ReduceSum", [mask, g.ints(1)], keepdims=1)  # C: [batch, 1]
        slots = g.op("positions/slots", "Add", [self._padding, length])
        last = g.op("positions/last", "Sub", [slots, g.scalar(1)])
        flat = g.op("positions/last_slot", "Squeeze", [last, g.ints(1)])
        self.seqlens_k = g.op("positions/seqlens_k", "Cast", [flat], to=ir.DataType.INT32)
        total = g.op("positions/total", "Shape", [mask], start=1, end=2)
        self._total = g.op("positions/total_scalar", "Squeeze", [total, g.ints(0)])
        self.total_length = g.op("positions/total_sequence_length", "Cast", [self._total], to=ir.DataType.INT32)

        # position of every token of the mask, then those of the tokens of this call: the last ones
        shifted = g.op("positions/shift", "Sub", [counted, g.scalar(1)])
        clamped = g.op("positions/clamp", "Max", [shifted, g.scalar(0)])
        new = g.op("positions/new", "Shape", [ids], start=1, end=2)
        start = g.op("positions/start", "Sub", [total, new])
        self.ids = g.op("positions/ids", "Slice", [clamped, start, total, g.ints(1)])

    def bias(self, window: int | None) -> ir.Value:
        """What is added to the scores, [batch, 1, sequence, total]: hides padding and what lies before the window.

        GroupQueryAttention has an attribute for windows, but it saves no time on the CPU, and before onnxruntime 1.24 it let
        one token too many through.
        """
        if window is not None and window >= self._positions:
            window = None  # wider than any text
        if window not in self._biases:
            self._biases[window] = self._append_bias(window)
        return self._biases[window]

    def _append_bias(self, window: int | None) -> ir.Value:
        g, name = self._graph, "bias" if window is None else f"bias_{window}"
        slot = g.op(f"{name}/slot", "Add", [self.ids, self._padding])  # [batch, sequence]
        behind = g.scalar(window - 1 if window is not None else 1 << 40)
        first_seen = g.op(f"{name}/window", "Sub", [slot, behind])
        first = g.op(f"{name}/first", "Max", [first_seen, self._padding])
        column = g.op(f"{name}/column", "Unsqueeze", [first, g.ints(1, 3)])  # [batch, 1, sequence, 1]
        slots = g.op(f"{name}/slots", "Range", [g.scalar(0), self._total, g.scalar(1)])
        hidden = g.op(f"{name}/hidden", "Less", [slots, column])
        bias = g.op(name, "Where", [hidden, g.scalar(_HIDDEN), g.scalar(0.0)])
        return bias if self._cache == ir.DataType.FLOAT else g.op(f"{name}/cast", "Cast", [bias], to=self._cache)

    def tables(self, rope: Rope) -> tuple[ir.Value, ir.Value]:
        """Cosines and sines, each float32 [positions, rotated / 2]."""
        number = self._decoder.ropes.index(rope)
        suffix = "" if number == 0 else f"_{number}"
        cos, sin = rotary_tables(rope, self._decoder.head_dim, self._positions)
        named = (("cos", cos), ("sin", sin))
        cosines, sines = (self._graph.initializer(ir.tensor(table, name=f"rotary{suffix}.{name}")) for name, table in named)
        return cosines, sines

    def rotate(self, rope: Rope, x: ir.Value, module: str, heads: int) -> ir.Value:
        """Rotate the heads of x [batch, sequence, heads * head_dim]."""
        # a part of a head is rotated only if its size and the number of heads are told
        part = (
            {} if rope.fraction == 1 else {"rotary_embedding_dim": rope.rotated(self._decoder.head_dim), "num_heads": heads}
        )
        operands = [x, self.ids, *self.tables(rope)]
        return self._graph.op(f"{module}/rotary", "RotaryEmbedding", operands, domain=CONTRIB, interleaved=0, **part)
