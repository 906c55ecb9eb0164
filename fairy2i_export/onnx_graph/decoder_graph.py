"""The decoder graph, written node by node the way onnxruntime-genai expects it.

Inputs: input_ids int64 [batch, sequence], attention_mask int64 [batch, total], past_key_values.N.key and .value float32 or
float16 [batch, kv_heads, past, head]. Outputs: logits float32 [batch, kept, vocabulary], present.N.key and .value. kept is
sequence, unless the input num_logits_to_keep int64 [1], 0 where it is not given, asks for the last ones only.
Positions are counted from the attention mask (positions.py). The KV cache goes through GroupQueryAttention, which also works
in place when past and present are the same buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import onnx_ir as ir

from fairy2i_export.decoder.description import Block, Decoder
from fairy2i_export.decoder.rope import Rope
from fairy2i_export.onnx_graph.choices import Embedding, KVCache
from fairy2i_export.onnx_graph.complex_values import complex_gate, halves_of_heads, whole_heads
from fairy2i_export.onnx_graph.embedding import embedding_node
from fairy2i_export.onnx_graph.formats import FORMATS, Settings, Weights, linear_node, linear_nodes
from fairy2i_export.onnx_graph.formats.base import Linear
from fairy2i_export.onnx_graph.function import define
from fairy2i_export.onnx_graph.operator import DOMAIN, FUNCTION_IR_VERSION, OP_VERSION, OPSET
from fairy2i_export.onnx_graph.positions import Positions
from fairy2i_export.onnx_graph.writer import CONTRIB, GraphWriter
from fairy2i_runtime.folder import LOGITS_TO_KEEP

PAST = "past_key_values.{}.{}"
PRESENT = "present.{}.{}"
_END = (1 << 63) - 1  # of a Slice: up to the last column
_CACHE_TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "int8": ir.DataType.INT8}


class GraphSettings(Settings, Protocol):
    """What the graph depends on besides the decoder: formats of layers, embedding and cache, and the longest text."""

    @property
    def embedding(self) -> Embedding: ...
    @property
    def kv_cache(self) -> KVCache: ...
    @property
    def context_length(self) -> int: ...


class DecoderBuilder:
    """Builds the graph of one model; the weights stay lazy.

    Args:
        decoder: what the model is.
        linears: its linear layers by module name.
        weights: where initializers come from.
        settings: see :class:`GraphSettings`.
    """

    def __init__(self, decoder: Decoder, linears: Mapping[str, Linear], weights: Weights, settings: GraphSettings) -> None:
        self.decoder = decoder
        self.linears = linears
        self.weights = weights
        self.settings = settings
        self.graph = GraphWriter()
        self.cache_type = _CACHE_TYPES[settings.kv_cache]
        # an int8 cache is filled and read by GroupQueryAttention itself, which computes in float32
        self.attention_type = ir.DataType.FLOAT if self.cache_type == ir.DataType.INT8 else self.cache_type

    def build(self) -> ir.Model:
        decoder, names, settings = self.decoder, self.decoder.names, self.settings
        ids = _input("input_ids", ir.DataType.INT64, ["batch_size", "sequence_length"])
        mask = _input("attention_mask", ir.DataType.INT64, ["batch_size", "total_sequence_length"])
        self.positions = Positions(self.graph, decoder, ids, mask, settings.context_length, self.attention_type)
        inputs, outputs = [ids, mask], []
        # an initializer that is an input as well: a host that knows nothing of it gets all logits, and onnxruntime does not even
        # list it among the inputs
        keep = self.graph.ints(0, name=LOGITS_TO_KEEP)
        self._first_kept = self.graph.op("logits/first", "Neg", [keep])

        residual = embedding_node(self.graph, self.weights, names.embedding, settings.embedding, ids)
        if decoder.embedding_scale is not None:
            scale = self.graph.scalar(decoder.embedding_scale)
            residual = self.graph.op(f"{names.embedding}/scale", "Mul", [residual, scale])
        normed = self._norm(residual, _module(names.attention_norm, 0))
        for layer, block in enumerate(decoder.blocks):
            past = [self._cache(PAST, layer, part, "past_sequence_length") for part in ("key", "value")]
            present = [self._cache(PRESENT, layer, part, "cache_length") for part in ("key", "value")]
            attended = self._attention(layer, block, normed, past, present)
            attended = self._norm(attended, _module(names.attention_post_norm, layer))
            is_last = layer + 1 == decoder.layers
            if is_last:
                residual = self._kept("logits/residual", residual)
            residual, normed = self._add_and_norm(residual, attended, layer, _module(names.mlp_norm, layer), "attention")
            fed = self._norm(self._mlp(layer, normed), _module(names.mlp_post_norm, layer))
            following = names.final_norm if is_last else _module(names.attention_norm, layer + 1)
            residual, normed = self._add_and_norm(residual, fed, layer, following, "mlp")
            inputs += past
            outputs += present
        logits = self._cap_logits(self._linear(names.lm_head, normed))
        logits.name = "logits"
        logits.dtype = ir.DataType.FLOAT
        logits.shape = ir.Shape(["batch_size", "logits_length", decoder.vocab_size])

        ours = FORMATS[settings.backend].library
        graph = ir.Graph(
            [*inputs, keep],
            [logits, *outputs],
            nodes=self.graph.nodes,
            initializers=list(self.graph.initializers.values()),
            opset_imports={"": OPSET, CONTRIB: 1, **({DOMAIN: OP_VERSION} if ours else {})},
            name=decoder.architecture,
        )
        model = ir.Model(graph, ir_version=FUNCTION_IR_VERSION)
        if ours:
            define(model)
        return model

    def _attention(self, layer: int, block: Block, x: ir.Value, past: list[ir.Value], present: list[ir.Value]) -> ir.Value:
        names, decoder, g = self.decoder.names, self.decoder, self.graph
        prefix = names.o.format(layer).rpartition(".")[0]
        widths = [decoder.heads * decoder.head_dim, *2 * [decoder.kv_heads * decoder.head_dim]]
        query, key, value = self._projections(layer, x, (names.q, names.k, names.v), names.qkv, widths)
        if decoder.complex_weights:
            counts = (decoder.heads, decoder.kv_heads, decoder.kv_heads)
            query, key, value = (
                whole_heads(g, x, count, decoder.head_dim) for x, count in zip((query, key, value), counts, strict=True)
            )
        query = self._norm_heads(query, _module(names.q_norm, layer), decoder.heads)
        key = self._norm_heads(key, _module(names.k_norm, layer), decoder.kv_heads)
        inside = block.rope if self._attention_rotates(block.rope) else None
        if block.rope is not None and inside is None:
            query_name, key_name = (
                name.format(layer) if name else f"{prefix}.{part}" for name, part in ((names.q, "q"), (names.k, "k"))
            )
            query = self.positions.rotate(block.rope, query, query_name, decoder.heads)
            key = self.positions.rotate(block.rope, key, key_name, decoder.kv_heads)
        operands = [query, key, value]
        if self.attention_type != ir.DataType.FLOAT:
            operands = [
                g.op(f"{prefix}/{part}_cast", "Cast", [operand], to=self.attention_type)
                for part, operand in zip(("query", "key", "value"), operands, strict=True)
            ]
        optional: dict[str, object] = {"scale": decoder.attention_scale, "softcap": decoder.attention_softcap}
        scales = self._cache_scales(layer) if self.cache_type == ir.DataType.INT8 else []
        if scales:
            optional |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        attended = ir.Value(name=f"{prefix}/attention/output")
        g.node(
            f"{prefix}/attention",
            "GroupQueryAttention",
            [
                *operands,
                *past,
                self.positions.seqlens_k,
                self.positions.total_length,
                *(2 * [None] if inside is None else self.positions.tables(inside)),
                None,  # positions
                self.positions.bias(block.window),
                *scales,
            ],
            [attended, *present],
            domain=CONTRIB,
            num_heads=decoder.heads,
            kv_num_heads=decoder.kv_heads,
            do_rotary=int(inside is not None),
            **{name: value for name, value in optional.items() if value is not None},
        )
        if self.attention_type != ir.DataType.FLOAT:
            attended = g.op(f"{prefix}/attention_cast", "Cast", [attended], to=ir.DataType.FLOAT)
        if layer + 1 == decoder.layers:
            attended = self._kept("logits/attended", attended)
        if decoder.complex_weights:
            attended = halves_of_heads(g, attended, decoder.heads, decoder.head_dim)
        return self._linear(names.o.format(layer), self._norm(attended, _module(names.o_norm, layer)))

    def _attention_rotates(self, rope: Rope | None) -> bool:
        """Whether GroupQueryAttention rotates queries and keys itself, which saves two nodes and gives the same bits.

        It does so by slots of the cache, which are positions but for rows with padding in front. There they are larger by the
        same number for all tokens, and attention depends on differences. (Positions of ours it reads wrong: in a prompt the
        first one counts for all rows.)

        What it cannot rotate: other sizes than multiples of 16, of a head or the part of it that is rotated. Float16 it rotates
        with tables of float16, ten times as coarse, and in front of an int8 cache onnxruntime 1.27 mixes up the texts of a batch.
        """
        size = self.decoder.head_dim
        fits = rope is not None and size % 16 == 0 and rope.rotated(size) % 16 == 0
        return fits and self.cache_type == ir.DataType.FLOAT

    def _kept(self, name: str, x: ir.Value) -> ir.Value:
        """The columns of x [batch, sequence, width] that logits are wanted of.

        Nothing needs the others once keys and values of the last layer are in the cache.
        """
        g = self.graph
        return g.op(name, "Slice", [x, self._first_kept, g.ints(_END), g.ints(1)])

    def _cache_scales(self, layer: int) -> list[ir.Value | None]:
        """What one step of an int8 cache is worth in every channel; measured once the model can be run (cache_scales.py)."""
        ones = np.ones(self.decoder.kv_heads * self.decoder.head_dim, np.float32)
        names = (PAST.format(layer, part) for part in ("key_scale", "value_scale"))
        return [None, *(self.graph.initializer(ir.tensor(ones, name=name)) for name in names)]  # None: attention sinks

    def _mlp(self, layer: int, x: ir.Value) -> ir.Value:
        """down(activation(gate(x)) * up(x))."""
        names, decoder, g = self.decoder.names, self.decoder, self.graph
        gate, up = self._projections(
            layer, x, (names.gate, names.up), names.gate_up, [decoder.intermediate_size, decoder.intermediate_size]
        )
        name = names.down.format(layer).rpartition(".")[0]
        if decoder.activation == "complex_relu2":
            gated = complex_gate(g, name, gate, up, decoder.intermediate_size // 2)
        else:
            if decoder.activation == "gelu_tanh":
                active = g.op(f"{name}/gelu", "FastGelu", [gate], domain=CONTRIB)
            else:
                sigmoid = g.op(f"{name}/sigmoid", "Sigmoid", [gate])
                active = g.op(f"{name}/silu", "Mul", [gate, sigmoid])
            gated = g.op(f"{name}/gated", "Mul", [active, up])
        return self._linear(names.down.format(layer), self._norm(gated, _module(names.down_norm, layer)))

    def _projections(
        self, layer: int, x: ir.Value, separate: tuple[str | None, ...], fused: str | None, widths: list[int]
    ) -> list[ir.Value]:
        """Outputs of several linear layers of one x, or the parts of the output of one that stands for all of them."""
        if fused is None:
            linears = [self.linears[name.format(layer)] for name in separate if name is not None]
            return linear_nodes(self.graph, self.weights, linears, x)
        module = fused.format(layer)
        parts = [ir.Value(name=f"{module}/part_{number}") for number in range(len(widths))]
        sizes = self.graph.ints(*widths)
        self.graph.node(f"{module}/split", "Split", [self._linear(module, x), sizes], parts, axis=-1)
        return parts

    def _norm(self, x: ir.Value, module: str | None) -> ir.Value:
        """RMS norm in standard operators: ONNX Runtime fuses them to its own operator, which onnx.checker would not accept."""
        if module is None:
            return x
        g = self.graph
        squared = g.op(f"{module}/square", "Pow", [x, g.scalar(2.0)])
        mean = g.op(f"{module}/mean", "ReduceMean", [squared, g.ints(-1)], keepdims=1)
        shifted = g.op(f"{module}/add_epsilon", "Add", [mean, g.scalar(self.decoder.norm_eps)])
        root = g.op(f"{module}/root", "Sqrt", [shifted])
        scaled = g.op(f"{module}/divide", "Div", [x, root])
        return g.op(module, "Mul", [scaled, self._norm_weight(module)])

    def _norm_heads(self, x: ir.Value, module: str | None, heads: int) -> ir.Value:
        """The norm of queries or keys [batch, sequence, heads * head_dim], of each head alone or of all values together."""
        if module is None or self.decoder.qk_norm == "all":
            return self._norm(x, module)
        g, size = self.graph, self.decoder.head_dim
        split = g.op(f"{module}/split_heads", "Reshape", [x, g.ints(0, 0, heads, size)])
        return g.op(f"{module}/join_heads", "Reshape", [self._norm(split, module), g.ints(0, 0, heads * size)])

    def _add_and_norm(
        self, residual: ir.Value, x: ir.Value, layer: int, module: str | None, what: str
    ) -> tuple[ir.Value, ir.Value]:
        """(residual + x, its RMS norm), the same twice where no norm follows."""
        if module is None:
            total = self.graph.op(f"model.layers.{layer}/add_{what}", "Add", [residual, x])
            return total, total
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
        offset, scale = self.decoder.norm_offset, self.decoder.norm_scale
        return self.graph.initializer(self.weights.dense(f"{module}.weight", plus=offset, times=scale))

    def _cap_logits(self, logits: ir.Value) -> ir.Value:
        if self.decoder.logits_softcap is None:
            return logits
        g, cap = self.graph, self.graph.scalar(self.decoder.logits_softcap)
        divided = g.op("logits/divide", "Div", [logits, cap])
        return g.op("logits/cap", "Mul", [g.op("logits/tanh", "Tanh", [divided]), cap])

    def _linear(self, module: str, x: ir.Value) -> ir.Value:
        return linear_node(self.graph, self.weights, self.linears[module], x)

    def _cache(self, pattern: str, layer: int, part: str, length: str) -> ir.Value:
        shape: list[str | int] = ["batch_size", self.decoder.kv_heads, length, self.decoder.head_dim]
        return _input(pattern.format(layer, part), self.cache_type, shape)


def _module(pattern: str | None, layer: int) -> str | None:
    return None if pattern is None else pattern.format(layer)


def _input(name: str, dtype: ir.DataType, shape: list[str | int]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
