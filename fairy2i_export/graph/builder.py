"""The decoder graph, written node by node the way onnxruntime-genai expects it.

Inputs: input_ids int64 [batch, sequence], attention_mask int64 [batch, total], past_key_values.N.key and .value float32
[batch, kv_heads, past, head]. Outputs: logits float32 [batch, sequence, vocabulary], present.N.key and .value. Positions are
counted from the attention mask. The KV cache goes through GroupQueryAttention, which also works in place when past and
present are the same buffer.
"""

from __future__ import annotations

import onnx_ir as ir

from fairy2i_export.config import Decoder
from fairy2i_export.graph.function import DOMAIN, OP_VERSION, OPSET, matmul_function
from fairy2i_export.graph.linear import CONTRIB, embedding_node, linear_node
from fairy2i_export.graph.rope import rotary_tables
from fairy2i_export.graph.writer import GraphWriter
from fairy2i_export.plan import Plan
from fairy2i_export.weights import WeightSource

IR_VERSION = 8  # the first with model-local functions
PAST = "past_key_values.{}.{}"
PRESENT = "present.{}.{}"


class DecoderBuilder:
    """Builds the graph of one model; the weights stay lazy."""

    def __init__(self, decoder: Decoder, plan: Plan, weights: WeightSource) -> None:
        self.decoder = decoder
        self.plan = plan
        self.weights = weights
        self.graph = GraphWriter()

    def build(self) -> ir.Model:
        decoder, names = self.decoder, self.decoder.names
        ids = _input("input_ids", ir.DataType.INT64, ["batch_size", "sequence_length"])
        mask = _input("attention_mask", ir.DataType.INT64, ["batch_size", "total_sequence_length"])
        self._prepare_positions(ids, mask)
        inputs, outputs = [ids, mask], []

        x = embedding_node(self.graph, self.weights, names.embedding, self.weights.options.embedding, ids)
        residual, normed = x, self._first_norm(x, names.attention_norm.format(0))
        for layer in range(decoder.layers):
            past = [self._cache(PAST, layer, part, "past_sequence_length") for part in ("key", "value")]
            present = [self._cache(PRESENT, layer, part, "cache_length") for part in ("key", "value")]
            attended = self._attention(layer, normed, past, present)
            residual, normed = self._add_and_norm(residual, attended, names.mlp_norm.format(layer))
            following = names.final_norm if layer + 1 == decoder.layers else names.attention_norm.format(layer + 1)
            residual, normed = self._add_and_norm(residual, self._mlp(layer, normed), following)
            inputs += past
            outputs += present
        logits = self._linear(names.lm_head, normed)
        logits.name = "logits"
        logits.dtype = ir.DataType.FLOAT
        logits.shape = ir.Shape(["batch_size", "sequence_length", decoder.vocab_size])

        graph = ir.Graph(
            inputs,
            [logits, *outputs],
            nodes=self.graph.nodes,
            initializers=list(self.graph.initializers.values()),
            opset_imports={"": OPSET, CONTRIB: 1, DOMAIN: OP_VERSION},
            name=decoder.architecture,
        )
        return ir.Model(graph, ir_version=IR_VERSION, functions=[matmul_function()])

    def _prepare_positions(self, ids: ir.Value, mask: ir.Value) -> None:
        """The values that every attention layer shares: positions, lengths, rotary tables."""
        g = self.graph
        one = g.ints(1)
        length = g.op("positions/length", "ReduceSum", [mask, one], keepdims=0)
        last = g.op("positions/last", "Sub", [length, g.scalar(1)])
        self.seqlens_k = g.op("positions/seqlens_k", "Cast", [last], to=ir.DataType.INT32)
        total = g.op("positions/total", "Shape", [mask], start=1, end=2)
        total_scalar = g.op("positions/total_scalar", "Squeeze", [total, g.ints(0)])
        self.total_length = g.op("positions/total_sequence_length", "Cast", [total_scalar], to=ir.DataType.INT32)

        # position of every token of the mask, then those of the tokens of this call: the last ones
        counted = g.op("positions/count", "CumSum", [mask, g.scalar(1)])
        shifted = g.op("positions/shift", "Sub", [counted, g.scalar(1)])
        clamped = g.op("positions/clamp", "Max", [shifted, g.scalar(0)])
        new = g.op("positions/new", "Shape", [ids], start=1, end=2)
        start = g.op("positions/start", "Sub", [total, new])
        self.position_ids = g.op("positions/ids", "Slice", [clamped, start, total, one])

        tables = rotary_tables(self.decoder.rope, self.decoder.head_dim, self.weights.options.context_length)
        self.cos, self.sin = (
            g.initializer(ir.tensor(table, name=f"rotary.{name}"))
            for name, table in zip(("cos", "sin"), tables, strict=True)
        )

    def _attention(self, layer: int, x: ir.Value, past: list[ir.Value], present: list[ir.Value]) -> ir.Value:
        names, decoder, g = self.decoder.names, self.decoder, self.graph
        query = self._rotate(names.q.format(layer), self._linear(names.q.format(layer), x))
        key = self._rotate(names.k.format(layer), self._linear(names.k.format(layer), x))
        value = self._linear(names.v.format(layer), x)
        name = names.o.format(layer).rpartition(".")[0] + "/attention"
        # rotation happens before this node: its own (do_rotary) refuses head sizes that are no multiple of 16
        attended = ir.Value(name=f"{name}/output")
        g.node(
            name,
            "GroupQueryAttention",
            [query, key, value, *past, self.seqlens_k, self.total_length],
            [attended, *present],
            domain=CONTRIB,
            num_heads=decoder.heads,
            kv_num_heads=decoder.kv_heads,
            do_rotary=0,
        )
        return self._linear(names.o.format(layer), attended)

    def _rotate(self, module: str, x: ir.Value) -> ir.Value:
        inputs = [x, self.position_ids, self.cos, self.sin]
        return self.graph.op(f"{module}/rotary", "RotaryEmbedding", inputs, domain=CONTRIB, interleaved=0)

    def _mlp(self, layer: int, x: ir.Value) -> ir.Value:
        """SwiGLU: down(silu(gate(x)) * up(x))."""
        names, g = self.decoder.names, self.graph
        gate = self._linear(names.gate.format(layer), x)
        up = self._linear(names.up.format(layer), x)
        name = names.down.format(layer).rpartition(".")[0]
        sigmoid = g.op(f"{name}/sigmoid", "Sigmoid", [gate])
        silu = g.op(f"{name}/silu", "Mul", [gate, sigmoid])
        gated = g.op(f"{name}/gated", "Mul", [silu, up])
        return self._linear(names.down.format(layer), gated)

    def _first_norm(self, x: ir.Value, module: str) -> ir.Value:
        """RMS norm in standard operators: ONNX Runtime fuses them to its own operator, which onnx.checker would not accept."""
        g = self.graph
        squared = g.op(f"{module}/square", "Pow", [x, g.scalar(2.0)])
        mean = g.op(f"{module}/mean", "ReduceMean", [squared, g.ints(-1)], keepdims=1)
        shifted = g.op(f"{module}/add_epsilon", "Add", [mean, g.scalar(self.decoder.norm_eps)])
        root = g.op(f"{module}/root", "Sqrt", [shifted])
        scaled = g.op(f"{module}/divide", "Div", [x, root])
        return g.op(module, "Mul", [scaled, self._norm_weight(module)])

    def _add_and_norm(self, residual: ir.Value, x: ir.Value, module: str) -> tuple[ir.Value, ir.Value]:
        """(residual + x, its RMS norm)."""
        normed, total = ir.Value(name=f"{module}/output"), ir.Value(name=f"{module}/sum")
        self.graph.node(
            module,
            "SkipSimplifiedLayerNormalization",
            [residual, x, self._norm_weight(module)],
            [normed, ir.Value(name=""), ir.Value(name=""), total],
            domain=CONTRIB,
            epsilon=self.decoder.norm_eps,
        )
        return total, normed

    def _norm_weight(self, module: str) -> ir.Value:
        return self.graph.initializer(self.weights.vector(f"{module}.weight"))

    def _linear(self, module: str, x: ir.Value) -> ir.Value:
        return linear_node(self.graph, self.weights, self.plan.linears[module], x)

    def _cache(self, pattern: str, layer: int, part: str, length: str) -> ir.Value:
        shape: list[str | int] = ["batch_size", self.decoder.kv_heads, length, self.decoder.head_dim]
        return _input(pattern.format(layer, part), ir.DataType.FLOAT, shape)


def _input(name: str, dtype: ir.DataType, shape: list[str | int]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
