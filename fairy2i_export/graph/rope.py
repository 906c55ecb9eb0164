"""Cosine and sine tables of rotary position embeddings, computed in float32 as transformers computes them."""

from __future__ import annotations

import math

import numpy as np

from fairy2i_export.config import Rope
from fairy2i_export.native import F32


def inverse_frequencies(rope: Rope, head_dim: int) -> F32:
    """Angle per position of every pair of a head, float32 [head_dim / 2]."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # the power correctly rounded to float32, as torch has it: numpy's own float32 power is often one bit off, and one bit
    # of a frequency times position 4096 moves the angle by 0.0005
    powers = np.power(rope.theta, exponents.astype(np.float64)).astype(np.float32)
    frequencies: F32 = np.float32(1) / powers
    if rope.kind == "linear":
        return frequencies / np.float32(rope.factor)
    if rope.kind == "llama3":
        return _llama3(frequencies, rope)
    return frequencies


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


def rotary_tables(rope: Rope, head_dim: int, positions: int) -> tuple[F32, F32]:
    """(cos, sin), each float32 [positions, head_dim / 2]."""
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse_frequencies(rope, head_dim)[None, :]
    return np.cos(angles), np.sin(angles)
