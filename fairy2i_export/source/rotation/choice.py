"""What of a model can be rotated: decided from its description, told in a model's metadata, and made again from there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fairy2i_export.decoder.description import Decoder
from fairy2i_export.errors import FormatError
from fairy2i_export.source.rotation.transform import Rotation, make_rotation

METHOD = "signs-orthogonal-hadamard-1"  # what the matrices depend on beside sizes: other matrices, another name


@dataclass(frozen=True)
class RotationChoice:
    """The rotations of a model.

    Attributes:
        residual: the residual stream is rotated (R1).
        heads: the values of every key-value head are rotated (R2).
        left_out: why something is not rotated, a sentence; empty if all is.
    """

    residual: bool
    heads: bool
    left_out: str = ""

    def stated(self, decoder: Decoder) -> str:
        """For the metadata of a model: method and sizes of the factors, as JSON."""
        residual = _factors(decoder.hidden_size) if self.residual else None
        heads = _factors(decoder.head_dim) if self.heads else None
        return json.dumps({"method": METHOD, "residual": residual, "heads": heads})

    def residual_rotation(self, decoder: Decoder) -> Rotation | None:
        """R1, of the hidden size."""
        return make_rotation(decoder.hidden_size, f"{METHOD} residual") if self.residual else None

    def head_rotations(self, decoder: Decoder, layer: int) -> tuple[Rotation, Rotation] | None:
        """R2 of a layer: for the outputs of its values, and for the inputs of ``o``, where query heads share a key-value head's."""
        if not self.heads:
            return None
        size, seed, groups = decoder.head_dim, f"{METHOD} heads of layer {layer}", decoder.kv_heads
        return make_rotation(size, seed, groups), make_rotation(size, seed, groups, decoder.heads // groups)


def choose_rotation(decoder: Decoder) -> RotationChoice:
    """All that can be absorbed into the weights of a model.

    The residual stream can be if a norm, whose weights fold into the layers behind it, comes before everything that reads it, and
    nothing but linear layers writes to it: a norm behind attention or the feed-forward block weights channels one by one. Norms
    of queries and keys are no obstacle, and values pass from one linear layer to another in every architecture.
    """
    names = decoder.names
    reasons = []
    if names.attention_post_norm is not None or names.mlp_post_norm is not None:
        reasons.append("norms behind attention and feed-forward blocks weight its channels one by one")
    if names.attention_norm is None or names.mlp_norm is None:
        reasons.append("layers read it without a norm in front of them that could take over its scale")
    left_out = (
        f"rotation: the residual stream of {decoder.architecture} is left as it is, because {' and '.join(reasons)}; the values of "
        "heads are rotated"
    )
    return RotationChoice(not reasons, True, left_out if reasons else "")


def stated_rotation(text: str, decoder: Decoder) -> RotationChoice:
    """What a model's metadata states.

    Raises:
        FormatError: if it is not what this version makes of such a model.
    """
    choice = choose_rotation(decoder)
    if _parsed(text) == json.loads(choice.stated(decoder)):
        return choice
    raise FormatError(
        f"metadata fairy2i.rotation: expected {choice.stated(decoder)}, found {text}; the model is of another source, or another "
        "version wrote it, which has to be used for it"
    )


def rotation_words(text: str | None) -> str:
    """What a model's metadata states, for people."""
    found = _parsed(text) if text is not None else None
    if not isinstance(found, dict):
        return "none"
    parts = {"residual stream": found.get("residual"), "values of heads": found.get("heads")}
    return ", ".join(f"{what} ({factors})" for what, factors in parts.items() if factors) or "none"


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _factors(size: int) -> str:
    """A size as the product that its rotation is made of."""
    power = size & -size
    return f"{size // power} x {power}"
