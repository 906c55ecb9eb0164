"""Cosine and sine tables of rotary position embeddings, computed in float32 as transformers computes them."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from fairy2i_export.codes.native import F32
from fairy2i_export.decoder.rope import Rope
from fairy2i_export.errors import CheckpointError


def inverse_frequencies(rope: Rope, head_dim: int, positions: int = 0) -> F32:
    """Angle per position of every rotated pair of a head, float32 [rotated / 2].

    Args:
        rope: the settings.
        head_dim: values of a head.
        positions: the longest text; longrope has other frequencies for more than the original context.

    Raises:
        CheckpointError: longrope factors that are not one per pair.
    """
    rotated = rope.rotated(head_dim)
    if rope.frequencies == "bf16_load":
        return _bfloat16_steps(rope, rotated)
    exponents = np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated)
    # the power correctly rounded to float32, as torch has it: numpy's own float32 power is often one bit off, and one bit
    # of a frequency times position 4096 moves the angle by 0.0005
    powers = np.power(rope.theta, exponents.astype(np.float64)).astype(np.float32)
    frequencies: F32 = np.float32(1) / powers
    if rope.kind == "linear":
        return frequencies / np.float32(rope.factor)
    if rope.kind == "llama3":
        return _llama3(frequencies, rope)
    if rope.kind == "yarn":
        return _yarn(powers, rope, rotated)
    if rope.kind == "longrope":
        name = "long_factor" if positions > rope.original_max_positions else "short_factor"
        factors = np.array(rope.long_factors if name == "long_factor" else rope.short_factors, np.float32)
        if factors.shape != powers.shape:
            raise CheckpointError(
                f"config.json: rope scaling: {name}: expected {len(powers)} numbers, one per rotated pair, found {len(factors)}"
            )
        return np.float32(1) / (factors * powers)
    return _bfloat16(frequencies) if rope.frequencies == "bf16_cast" else frequencies


def _bfloat16(x: F32) -> F32:
    return x.astype(ml_dtypes.bfloat16).astype(np.float32)


def _bfloat16_steps(rope: Rope, rotated: int) -> F32:
    """What torch computes when a model is built in bfloat16, every step rounded: exponents, base, powers, inverses."""
    exponents = _bfloat16(np.arange(0, rotated, 2, dtype=np.float32) / np.float32(rotated))
    base = float(_bfloat16(np.array([rope.theta], np.float32))[0])
    powers = _bfloat16(np.power(base, exponents.astype(np.float64)).astype(np.float32))
    return _bfloat16(np.float32(1) / powers)


def _llama3(frequencies: F32, rope: Rope) -> F32:
    """Llama 3.1: long waves are stretched by the factor, short ones kept, those in between interpolated."""
    wave_length = np.float32(2 * math.pi) / frequencies
    longest_kept = rope.original_max_positions / rope.high_freq_factor
    shortest_stretched = rope.original_max_positions / rope.low_freq_factor
    stretched = frequencies / np.float32(rope.factor)
    smooth = (rope.original_max_positions / wave_length - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    between = (1 - smooth) * stretched + smooth * frequencies
    out = np.where(wave_length > shortest_stretched, stretched, np.where(wave_length < longest_kept, frequencies, between))
    return out.astype(np.float32)


def _yarn(powers: F32, rope: Rope, rotated: int) -> F32:
    """YaRN: pairs that turn often within the original context are kept, slow ones stretched, a ramp lies between."""

    def pair(turns: float) -> float:
        """The pair that turns so many times within the original context."""
        return rotated * math.log(rope.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    width = high - low if high != low else 0.001
    stretched = np.clip((np.arange(rotated // 2, dtype=np.float32) - np.float32(low)) / np.float32(width), 0, 1)
    kept = np.float32(1) - stretched
    slow = np.float32(1) / (np.float32(rope.factor) * powers)
    out: F32 = slow * (np.float32(1) - kept) + np.float32(1) / powers * kept
    return out


def rotary_tables(rope: Rope, head_dim: int, positions: int) -> tuple[F32, F32]:
    """(cos, sin), each float32 [positions, rotated / 2]; errors as :func:`inverse_frequencies`."""
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse_frequencies(rope, head_dim, positions)[None, :]
    scale = np.float32(rope.table_scale)
    return np.cos(angles) * scale, np.sin(angles) * scale
