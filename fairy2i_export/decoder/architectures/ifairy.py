"""iFairy (Fairy ±i, arXiv 2508.05571): a complex LLaMA whose linear layers compute W conj(x), the entries of W in {1, -1, i, -i}.

On ``h = concat(re, im)`` it is a real decoder of twice the width: heads of 2 head_dim values with ordinary rotary embeddings,
ordinary RMS norms (the complex ones average over half as many values: hence epsilon / 2 and gains / sqrt 2), one embedding
and one lm_head. Special are the linear layers, whose inputs are rounded to 8 bits, and the gate of the feed-forward block.

The released code was trained and evaluated with flash attention, which scales scores by the width of what it is given:
``(2 head_dim)^-0.5``. Its eager branch, and ports made after it, use ``head_dim^-0.5``.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal, get_args

from fairy2i_export.decoder.architectures.common import attention_heads, blocks_alike, max_positions
from fairy2i_export.decoder.config_values import MAX_POSITIONS, positive_float, positive_int, shown
from fairy2i_export.decoder.description import Decoder, Names
from fairy2i_export.decoder.pairs import PairNames
from fairy2i_export.decoder.rope import ROPE_FREQUENCIES, Rope
from fairy2i_export.errors import ArchitectureError, OptionError

NAME = "ComplexNetLM"
ACTIVATION_BITS = 8
AttentionScale = Literal["flash", "eager"]
ATTENTION_SCALES: tuple[AttentionScale, ...] = get_args(AttentionScale)
_CHOICES: dict[str, tuple[str, ...]] = {"rope_frequencies": ROPE_FREQUENCIES, "attention_scale": ATTENTION_SCALES}
CHOSEN: dict[str, str] = {"rope_frequencies": "bf16_load", "attention_scale": "flash"}  # what was trained and evaluated

_NAMES = replace(Names(), o_norm="model.layers.{}.self_attn.attn_layernorm", down_norm="model.layers.{}.mlp.ffn_layernorm")
_LINEARS = (*(f"self_attn.{name}_proj" for name in "qkvo"), *(f"mlp.{name}_proj" for name in ("gate", "up", "down")))
_NORMS = {
    "pre_layernorm": "input_layernorm",
    "post_layernorm": "post_attention_layernorm",
    "self_attn.attn_layernorm": "self_attn.attn_layernorm",
    "mlp.ffn_layernorm": "mlp.ffn_layernorm",
}
PAIRS = (
    PairNames("token_embeddings_{part}.weight", "model.embed_tokens.weight", axis=1),
    PairNames("final_norm.weight_{part}", "model.norm.weight"),
    *(PairNames(f"layer.{{layer}}.{own}.weight_{{part}}", f"model.layers.{{layer}}.{name}.weight") for own, name in _NORMS.items()),
    *(
        PairNames(f"layer.{{layer}}.{name}.weight_{{part}}", f"model.layers.{{layer}}.{name}.weight", conjugate=True)
        for name in _LINEARS
    ),
)  # fmt: skip

# keys that the released code reads past -> what the released checkpoints say there
_IGNORED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("relu2", None),
    "attention_bias": (False, None),
    "rope_scaling": (None,),
    "tie_word_embeddings": (False, None),
}


def describe(config: dict[str, Any]) -> Decoder:
    """Translate the config.json of a ComplexNetLM, which counts complex channels, into a real decoder of twice the width.

    Raises:
        ArchitectureError: heads that do not divide the width or each other.
        CheckpointError: missing or impossible values.
    """
    hidden, (heads, kv_heads) = positive_int(config, "hidden_size"), attention_heads(config)
    if hidden % heads:
        raise ArchitectureError(f"config.json: hidden_size {hidden} is no multiple of num_attention_heads {heads}")
    head_dim = hidden // heads
    if positive_int(config, "head_dim", head_dim) != head_dim:
        raise ArchitectureError(
            f"config.json: head_dim {config['head_dim']} is not hidden_size / num_attention_heads ({head_dim}), as {NAME} has it"
        )
    chosen = {key: config.get(key, default) for key, default in CHOSEN.items()}  # of with_choices
    rope = Rope("default", positive_float(config, "rope_theta", 10000.0), frequencies=chosen["rope_frequencies"])
    return Decoder(
        architecture=NAME,
        genai_type="decoder",
        names=_NAMES,
        hidden_size=2 * hidden,
        intermediate_size=2 * positive_int(config, "intermediate_size"),
        blocks=blocks_alike(config, rope, None),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=2 * head_dim,
        vocab_size=positive_int(config, "vocab_size"),
        max_positions=min(max_positions(config), MAX_POSITIONS),
        norm_eps=positive_float(config, "rms_norm_eps", 1e-5) / 2,
        tied=False,
        activation="complex_relu2",
        norm_scale=math.sqrt(0.5),
        attention_scale=head_dim**-0.5 if chosen["attention_scale"] == "eager" else None,
        complex_weights=True,
        activation_bits=ACTIVATION_BITS,
        notes=tuple(_notes(config)),
    )


def _notes(config: dict[str, Any]) -> list[str]:
    """Values that say something else than the model computes, a sentence each."""
    return [
        f"config.json: {key} {shown(config[key])} is ignored, as the model's own code does"
        for key, expected in _IGNORED.items()
        if config.get(key) not in expected
    ]


def with_choices(config: dict[str, Any], **asked: str | None) -> dict[str, Any]:
    """A copy of a config.json as if it said what was asked for, or of an iFairy model what :data:`CHOSEN` has.

    Args:
        config: the parsed config.json.
        **asked: ``rope_frequencies`` and ``attention_scale``; None = not asked for.

    Raises:
        OptionError: an unknown value, or a model that has no such choice.
    """
    given = {key: value for key, value in asked.items() if value is not None}
    if config.get("architectures") != [NAME]:
        if not given:
            return config
        raise OptionError(
            f"{next(iter(given)).replace('_', ' ')}: is a choice for iFairy models ({NAME}) only, and config.json names "
            f"{shown(config.get('architectures'))}; leave it out"
        )
    for key, value in given.items():
        if value not in _CHOICES[key]:
            raise OptionError(f"{key.replace('_', ' ')}: expected one of {', '.join(_CHOICES[key])}, got {value!r}")
    return {**config, **CHOSEN, **given}
