"""The part of an exported graph that computes with whole numbers: positions, lengths and what is hidden, out of the attention mask.

Attention and rotary tables take these numbers as places in memory, and onnxruntime does not check all of them. So nothing but
the computation that fairy2i-export writes is allowed here, operator by operator.
"""

from __future__ import annotations

import re

MASK, TOKENS, KEEP = "mask", "tokens", "kept"  # the inputs attention_mask, input_ids and num_logits_to_keep
# what the other operators may be given
SEQLENS, TOTAL, POSITIONS, BIAS, BIAS_HALF = "seqlens", "total length", "positions", "bias", "bias as float16"
FIRST_KEPT = "first column of logits"
_HALF = "to=10"
_WINDOW = re.compile(r"\d{1,13}")
_ANY_WINDOW = "any window"

# (operator, operands, attributes) -> what comes out. Numbers stand for constants, in brackets for lists of one dimension
_STEPS = {
    ("CumSum", (MASK, "1"), ""): "counted",
    ("Equal", ("counted", "0"), ""): "before text",
    ("Cast", ("before text",), "to=7"): "before",
    ("ReduceSum", ("before", "[1]"), "keepdims=1"): "padding",
    ("ReduceSum", (MASK, "[1]"), "keepdims=1"): "length",
    ("Add", ("padding", "length"), ""): "slots",
    ("Sub", ("slots", "1"), ""): "last",
    ("Squeeze", ("last", "[1]"), ""): "last slot",
    ("Cast", ("last slot",), "to=6"): SEQLENS,
    ("Shape", (MASK,), "end=2 start=1"): "columns",
    ("Squeeze", ("columns", "[0]"), ""): "columns, scalar",
    ("Cast", ("columns, scalar",), "to=6"): TOTAL,
    ("Sub", ("counted", "1"), ""): "shifted",
    ("Max", ("shifted", "0"), ""): "clamped",
    ("Shape", (TOKENS,), "end=2 start=1"): "new",
    ("Sub", ("columns", "new"), ""): "start",
    ("Slice", ("clamped", "start", "columns", "[1]"), ""): POSITIONS,
    ("Add", (POSITIONS, "padding"), ""): "slot",
    ("Sub", ("slot", _ANY_WINDOW), ""): "first seen",
    ("Max", ("first seen", "padding"), ""): "first",
    ("Unsqueeze", ("first", "[1,3]"), ""): "column",
    ("Range", ("0", "columns, scalar", "1"), ""): "all slots",
    ("Less", ("all slots", "column"), ""): "hidden",
    ("Where", ("hidden", "-60000.0", "0.0"), ""): BIAS,
    ("Cast", (BIAS,), _HALF): BIAS_HALF,
    ("Neg", (KEEP,), ""): FIRST_KEPT,
}
OPERATORS = frozenset(operator for operator, _, _ in _STEPS)


def step(operator: str, operands: tuple[str | None, ...], attributes: str) -> str | None:
    """What a node computes, or None if it is not among the steps.

    Args:
        operator: of the standard domain.
        operands: what earlier steps gave, or a constant: ``1``, ``0.0``, ``[1,3]``; None: something else.
        attributes: ``name=value`` in the order of the names, a space between two.
    """
    if operator == "Sub" and len(operands) == 2 and operands[0] == "slot" and _WINDOW.fullmatch(operands[1] or ""):
        operands = (operands[0], _ANY_WINDOW)
    return _STEPS.get((operator, tuple(operand or "" for operand in operands), attributes))
