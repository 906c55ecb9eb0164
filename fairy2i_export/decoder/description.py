"""A decoder-only language model described without reference to where the description came from.

The architecture files (architectures/) translate a config.json into these dataclasses; plan and graph builder read only them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from fairy2i_export.decoder.rope import Rope

Activation = Literal["silu", "gelu_tanh", "complex_relu2"]
ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}  # by their names in config.json


@dataclass(frozen=True)
class Names:
    """Module names of the checkpoint; ``{}`` stands for the layer number. Their tensors are NAME.weight and NAME.bias.

    None stands for a module that the architecture does not have. Either q, k and v are there or qkv is, whose outputs are
    theirs in that order; likewise gate and up, or gate_up.
    """

    embedding: str = "model.embed_tokens"
    attention_norm: str | None = "model.layers.{}.input_layernorm"  # before attention
    q: str | None = "model.layers.{}.self_attn.q_proj"
    k: str | None = "model.layers.{}.self_attn.k_proj"
    v: str | None = "model.layers.{}.self_attn.v_proj"
    qkv: str | None = None
    q_norm: str | None = None
    k_norm: str | None = None
    o: str = "model.layers.{}.self_attn.o_proj"
    o_norm: str | None = None  # of the output of attention, before o
    attention_post_norm: str | None = None  # of the output of attention, before it is added to the residual
    mlp_norm: str | None = "model.layers.{}.post_attention_layernorm"  # before the feed-forward block
    gate: str | None = "model.layers.{}.mlp.gate_proj"
    up: str | None = "model.layers.{}.mlp.up_proj"
    gate_up: str | None = None
    down_norm: str | None = None  # of the gated values, before down
    down: str = "model.layers.{}.mlp.down_proj"
    mlp_post_norm: str | None = None
    final_norm: str = "model.norm"
    lm_head: str = "lm_head"

    @property
    def inside(self) -> Names:
        """The modules of a decoder layer by their names inside of it; the others as they are."""
        names = {field.name: getattr(self, field.name) for field in fields(self)}
        return Names(**{key: name and name.removeprefix("model.layers.{}.") for key, name in names.items()})


@dataclass(frozen=True)
class Block:
    """In what one layer may differ from the others."""

    rope: Rope | None  # None: queries and keys are not rotated
    window: int | None = None  # the token itself and window - 1 before it are seen; None = all


@dataclass(frozen=True)
class Decoder:
    """A transformer decoder with RMS norms, grouped-query attention and a gated feed-forward block.

    The defaults are LLaMA's; every other value is a feature of some architecture.
    """

    architecture: str  # class name in config.json
    genai_type: str  # model type in genai_config.json
    names: Names
    hidden_size: int
    intermediate_size: int
    blocks: tuple[Block, ...]
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    tied: bool  # config.json ties lm_head to the embedding
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    activation: Activation = "silu"
    qk_norm: Literal["head", "all"] = "head"  # names.q_norm works on each head, or on all values of the projection together
    norm_offset: float = 0.0  # added to the weights of every norm
    norm_scale: float = 1.0  # what they are multiplied by
    embedding_scale: float | None = None
    attention_scale: float | None = None  # None: 1 / sqrt(head_dim)
    attention_softcap: float | None = None  # scores become cap * tanh(score / cap)
    logits_softcap: float | None = None
    # values are two halves, real and imaginary parts of all channels; linear layers but lm_head compute W conj(x), and a head is
    # its real parts and its imaginary parts together
    complex_weights: bool = False
    activation_bits: int = 0  # that inputs of those layers are rounded to, a scale for every half of a row; 0: they are not
    notes: tuple[str, ...] = ()  # what config.json says and the model does not do, a sentence each

    @property
    def layers(self) -> int:
        return len(self.blocks)

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The different rotary embeddings, in the order of their first use."""
        return tuple(dict.fromkeys(block.rope for block in self.blocks if block.rope is not None))
