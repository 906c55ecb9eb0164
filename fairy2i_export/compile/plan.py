"""What will become of every weight, decided and checked from tensor headers before any weight is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from fairy2i_export.codes.layout import MAX_FEATURES
from fairy2i_export.compile.options import ExportOptions
from fairy2i_export.decoder.description import Decoder
from fairy2i_export.errors import CheckpointError, OptionError
from fairy2i_export.onnx_graph.formats.base import Linear, Treatment
from fairy2i_export.onnx_graph.formats.rounded import BLOCK
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.source.learned import learned_shapes

# tensors that old checkpoints hold and nobody needs
_HARMLESS = re.compile(r".*\.rotary_emb\.inv_freq|.*\.attn\.(masked_bias|bias)")


@dataclass(frozen=True)
class Plan:
    """Every linear layer in graph order, by module name, and the tensors of the checkpoint that are not used."""

    linears: dict[str, Linear]
    unused: tuple[str, ...]

    @property
    def rewritten(self) -> list[Linear]:
        return [linear for linear in self.linears.values() if linear.treatment == "fairy2i"]

    @property
    def stages(self) -> dict[str, int]:
        """Stages of every layer that becomes a Fairy2iMatMul node, by module name."""
        return {linear.name: linear.stages for linear in self.rewritten}

    @property
    def parameters(self) -> dict[str, int]:
        """Weights of the same layers."""
        return {linear.name: linear.parameters for linear in self.rewritten}

    def with_stages(self, stages: Mapping[str, int]) -> Plan:
        """The same plan with other stages in the layers that are named."""
        linears = {name: replace(x, stages=stages[name]) if name in stages else x for name, x in self.linears.items()}
        return replace(self, linears=linears)


def make_plan(checkpoint: Checkpoint, decoder: Decoder, options: ExportOptions) -> Plan:
    """Decide the treatment of every linear layer and check the shape of every tensor.

    Raises:
        CheckpointError: a missing tensor or one of the wrong shape.
        OptionError: a pattern that matches nothing, or no layer left to rewrite.
    """
    names = decoder.names
    for tensor, shape in _plain_tensors(decoder):
        _check_shape(checkpoint, tensor, shape)
    linears: dict[str, Linear] = {}
    for name, out_features, in_features, has_bias in _linear_shapes(decoder):
        weight = f"{name}.weight"
        if name == names.lm_head and decoder.tied and weight not in checkpoint:
            weight = f"{names.embedding}.weight"  # a lm_head.weight that exists counts even then, as in transformers
        bias = f"{name}.bias" if has_bias else None
        conjugate = decoder.complex_weights and name != names.lm_head
        _check_shape(checkpoint, weight, (out_features, in_features // 2 if conjugate else in_features))
        if bias is not None:
            _check_shape(checkpoint, bias, (out_features,))
        treatment, reason = _treatment(name, out_features, in_features, name == names.lm_head, options)
        linear = Linear(name, weight, bias, in_features, out_features, treatment, reason, conjugate=conjugate)
        if conjugate:
            linear = replace(linear, activation_bits=decoder.activation_bits)
        if treatment == "fairy2i":
            stages = options.head_stages if name == names.lm_head else options.stages
            linear = replace(linear, stages=stages, col_multiplier=options.col_multiplier != "none")
        elif name == names.lm_head and options.lm_head_stages is not None:
            raise OptionError(
                f"lm_head stages: lm_head is not quantized like the layers here ({reason}), and has none; leave the option out, or "
                "see to it that it is (--lm-head fairy2i)"
            )
        if name == names.lm_head and options.embedding == "shared":
            linear = _shared_head(linear, names.embedding, options)
        linears[name] = linear
    _check_patterns(linears, options)
    used = {tensor for tensor, _ in _plain_tensors(decoder)}
    used |= {tensor for linear in linears.values() for tensor in (linear.weight, linear.bias) if tensor is not None}
    for linear in linears.values():
        learned = learned_shapes(linear.name, linear.out_features, linear.in_features, options)
        used |= learned.keys()  # a layer that stays dense has no use for them: its weight is the product already
        if linear.treatment == "fairy2i":
            for tensor, shape in learned.items():
                _check_shape(checkpoint, tensor, shape)
    used |= {part for tensor in used for part in checkpoint.stored(tensor)}
    unused = tuple(sorted(tensor for tensor in checkpoint.owners if tensor not in used and not _HARMLESS.fullmatch(tensor)))
    plan = Plan(linears, unused)
    if not plan.rewritten:
        reasons = sorted({linear.reason for linear in linears.values()})
        raise OptionError(f"no layer would become a Fairy2iMatMul node ({'; '.join(reasons)}); nothing was written")
    return plan


def can_share(checkpoint: Checkpoint, decoder: Decoder) -> bool:
    """Whether lm_head is the embedding's matrix and can be stored once with it."""
    own = f"{decoder.names.lm_head}.weight" in checkpoint
    return decoder.tied and not own and decoder.hidden_size % BLOCK == 0


def _shared_head(linear: Linear, embedding: str, options: ExportOptions) -> Linear:
    """An lm_head that multiplies by the embedding's matrix.

    Raises:
        OptionError: they are two matrices, or it is stored in another way.
    """
    if linear.treatment != "int8":
        raise OptionError(
            f"embedding: shared is one int8 matrix for embedding and lm_head, got lm_head {options.lm_head}; add --lm-head int8, "
            "or choose another embedding"
        )
    if linear.weight != f"{embedding}.weight":
        raise OptionError(
            "embedding: shared is for models that tie lm_head to it, and this one has a matrix of its own; choose int8 or float16"
        )
    if linear.in_features % BLOCK:
        raise OptionError(
            f"embedding: shared needs a multiple of {BLOCK} columns, found {linear.in_features}; choose int8 or float16"
        )
    return replace(linear, shares=embedding)


def sharing_bits(plan: Plan, decoder: Decoder, options: ExportOptions) -> dict[str, int]:
    """Weights of the layers whose stages ``--bits`` is the average of: not of an lm_head that was asked to have so many."""
    alone = None if options.lm_head_stages is None else decoder.names.lm_head
    return {name: size for name, size in plan.parameters.items() if name != alone}


def _plain_tensors(decoder: Decoder) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors outside the linear layers and their shapes."""
    names, hidden, head = decoder.names, decoder.hidden_size, decoder.head_dim
    query, key = (decoder.heads * head, decoder.kv_heads * head) if decoder.qk_norm == "all" else (head, head)
    yield f"{names.embedding}.weight", (decoder.vocab_size, hidden)
    norms = [
        (names.attention_norm, hidden),
        (names.q_norm, query),
        (names.k_norm, key),
        (names.o_norm, decoder.heads * head),
        (names.attention_post_norm, hidden),
        (names.mlp_norm, hidden),
        (names.down_norm, decoder.intermediate_size),
        (names.mlp_post_norm, hidden),
    ]
    for layer in range(decoder.layers):
        yield from ((f"{norm.format(layer)}.weight", (size,)) for norm, size in norms if norm is not None)
    yield f"{names.final_norm}.weight", (hidden,)


def _linear_shapes(decoder: Decoder) -> Iterator[tuple[str, int, int, bool]]:
    """Module name, out features, in features, has bias."""
    names, hidden, inner = decoder.names, decoder.hidden_size, decoder.intermediate_size
    query, key = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    modules = [
        (names.q, query, hidden, decoder.qkv_bias),
        (names.k, key, hidden, decoder.qkv_bias),
        (names.v, key, hidden, decoder.qkv_bias),
        (names.qkv, query + 2 * key, hidden, decoder.qkv_bias),
        (names.o, hidden, query, decoder.o_bias),
        (names.gate, inner, hidden, decoder.mlp_bias),
        (names.up, inner, hidden, decoder.mlp_bias),
        (names.gate_up, 2 * inner, hidden, decoder.mlp_bias),
        (names.down, hidden, inner, decoder.mlp_bias),
    ]
    for layer in range(decoder.layers):
        yield from ((name.format(layer), out, into, bias) for name, out, into, bias in modules if name is not None)
    yield names.lm_head, decoder.vocab_size, hidden, False


def _treatment(name: str, out: int, into: int, is_head: bool, options: ExportOptions) -> tuple[Treatment, str]:
    if is_head and options.lm_head != "fairy2i":
        return ("dense" if options.lm_head == "float" else options.lm_head), f"--lm-head {options.lm_head}"
    if options.include and not _matches(name, options.include):
        return "dense", "not in --include"
    if _matches(name, options.exclude):
        return "dense", "--exclude"
    if out % 2 or into % 2:
        return "dense", "odd dimension"
    if max(out, into) > MAX_FEATURES:
        return "dense", f"more than {MAX_FEATURES} features"
    return "fairy2i", ""


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_patterns(linears: dict[str, Linear], options: ExportOptions) -> None:
    for option, patterns in (("--include", options.include), ("--exclude", options.exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in linears):
                example = next(iter(linears))
                raise OptionError(f"{option} {pattern!r} matches no linear layer; they are called like {example}")


def _check_shape(checkpoint: Checkpoint, tensor: str, expected: tuple[int, ...]) -> None:
    found = checkpoint.info(tensor).shape
    if found != expected:
        what = f"tensor {checkpoint.words(tensor)}"
        raise CheckpointError(
            f"{checkpoint.directory}: {what}: expected shape {list(expected)} by config.json, found {list(found)}"
        )
