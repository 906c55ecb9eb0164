"""Independent re-derivations that the implementation is held against. They share no code with the package.

``dense`` and ``lut`` start from codes, never from packed bytes, and follow the text of docs/format.md and
docs/architecture.md; ``quantize`` uses angles, as the published reference does, in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

UNIT = np.array([1, 1j, -1, -1j])


def dense(codes: npt.NDArray[np.uint8], scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The real matrix [2n, 2m] in float64, through complex arithmetic: columns are images of unit vectors."""
    stages, _, n, m = codes.shape
    u, w = np.zeros((2, n, m), complex)
    for t in range(stages):
        for matrix, target in ((0, u), (1, w)):
            c = UNIT[codes[t, matrix]]
            s_re, s_im = np.float64(scales[t, matrix])
            target += c.real * s_re + 1j * c.imag * s_im
    real_input, imag_input = u + w, 1j * (u - w)  # images of x = 1 and x = i under U x + W conj(x)
    top = np.concatenate([real_input.real, imag_input.real], axis=1)
    bottom = np.concatenate([real_input.imag, imag_input.imag], axis=1)
    return np.concatenate([top, bottom])


def layer(x: npt.NDArray[np.floating], q: Any, bias: npt.NDArray[np.floating] | None = None) -> npt.NDArray[np.float64]:
    """The operator in float64, x [..., 2m]; q has codes, scales and multipliers (or None) as attributes."""
    scaled = x.astype(np.float64) * (1 if q.col_multiplier is None else q.col_multiplier)
    y = scaled @ dense(q.codes, q.scales).T * (1 if q.row_multiplier is None else q.row_multiplier)
    return y if bias is None else y + bias


def relative(found: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> float:
    """|found - expected| / |expected| over all entries."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def lut(
    x: npt.NDArray[np.float32],
    codes: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.float32],
    block: int = 32,
) -> npt.NDArray[np.float32]:
    """Default mode for one row of x [2m] to the last bit: int8 tables per K-block, float32 sum over blocks in order."""
    stages, _, n, m = codes.shape
    padded = -(-m // block) * block
    x_re, x_im = np.zeros((2, padded), np.float32)
    x_re[:m], x_im[:m] = x[:m], x[m:]
    full = np.zeros((stages, 2, n, padded), np.uint8)
    full[..., :m] = codes
    acc = np.zeros((2, n), np.float32)
    for start in range(0, padded, block):
        terms = {}  # (stage, matrix) -> float32 [re/im, code, column]
        for t in range(stages):
            for matrix in range(2):
                s_re, s_im = scales[t, matrix]
                re = x_re[start : start + block]
                im = x_im[start : start + block] * np.float32(1 - 2 * matrix)
                real = [s_re * re, -(s_im * im), -(s_re * re), s_im * im]
                imag = [s_re * im, s_im * re, -(s_re * im), -(s_im * re)]
                terms[t, matrix] = np.array([real, imag], np.float32)
        pairs = {k: v[:, :, None, 0::2] + v[:, None, :, 1::2] for k, v in terms.items()}  # [re/im, first, second, pair]
        largest = max(np.abs(p).max() for p in pairs.values())
        if largest < np.float32(1e-30):
            continue
        per_value = np.float32(127) / largest
        total = np.zeros((2, n), np.int64)
        for (t, matrix), p in pairs.items():
            table = np.rint(p * per_value).astype(np.int64)
            first, second = full[t, matrix, :, start : start + block : 2], full[t, matrix, :, start + 1 : start + block : 2]
            columns = np.arange(block // 2)
            total += np.stack([table[part][first, second, columns].sum(axis=1) for part in range(2)])
        acc = acc + (largest / np.float32(127)) * total.astype(np.float32)
    return acc.reshape(-1)


def bf16(x: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Round to bfloat16 through bit arithmetic on float32, ties to even."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def quantize(
    weight: npt.NDArray[np.floating], stages: int, *, bfloat: bool = True
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """Codes [stages, 2, n, m] and scales [stages, 2, 2] with angles instead of magnitudes."""
    rnd = bf16 if bfloat else (lambda v: np.asarray(v, np.float32).astype(np.float64))
    a = rnd(weight)
    n, m = a.shape[0] // 2, a.shape[1] // 2
    a11, a12, a21, a22 = a[:n, :m], a[:n, m:], a[n:, :m], a[n:, m:]
    u = rnd(rnd(a11 + a22) / 2) + 1j * rnd(rnd(a21 - a12) / 2)
    w = rnd(rnd(a11 - a22) / 2) + 1j * rnd(rnd(a12 + a21) / 2)
    codes = np.zeros((stages, 2, n, m), np.uint8)
    scales = np.zeros((stages, 2, 2))
    for matrix, r in ((0, u), (1, w)):
        for t in range(stages):
            # quarter turns, counted from the axis; the border belongs to the next sector counter-clockwise
            exact_tie = np.abs(r.real) == np.abs(r.imag)
            turns = np.angle(r) / (np.pi / 2)
            k = np.floor(turns + 0.5).astype(int) % 4
            # angles of exact ties are not representable: decide them by the signs
            sign_re, sign_im = np.sign(r.real), np.sign(r.imag)
            tie = np.select(
                [(sign_re > 0) & (sign_im > 0), (sign_re < 0) & (sign_im > 0), (sign_re < 0) & (sign_im < 0)], [1, 2, 3], 0
            )
            k = np.where(exact_tie, tie, k)
            both_negative_zero = exact_tie & (r.real == 0) & np.signbit(r.real) & np.signbit(r.imag)
            k = np.where(both_negative_zero, 2, k)
            codes[t, matrix] = k
            for axis, part in ((0, r.real), (1, r.imag)):
                chosen = np.abs(part[k % 2 == axis])
                mean = np.float32(chosen.mean()) if chosen.size else np.float32(0)
                scales[t, matrix, axis] = max(rnd(mean), rnd(np.float32(1e-6)))
            q = UNIT[k].real * scales[t, matrix, 0] + 1j * UNIT[k].imag * scales[t, matrix, 1]
            r = rnd((r - q).real) + 1j * rnd((r - q).imag)
    return codes, scales


def nearest(
    re: npt.NDArray[np.floating], im: npt.NDArray[np.floating], scales: npt.NDArray[np.floating]
) -> npt.NDArray[np.uint8]:
    """Joint codes [stages, ...] by comparing every entry with every point of the first quadrant, in float32."""
    stages = len(scales)
    numbers = np.arange(4**stages)
    codes = np.stack([numbers // 4 ** (stages - 1 - t) % 4 for t in range(stages)])  # [stages, combination]
    point = np.zeros((2, numbers.size), np.float32)
    for t in range(stages):
        for axis, part in enumerate((UNIT[codes[t]].real, UNIT[codes[t]].imag)):
            point[axis] = point[axis] + np.float32(scales[t, axis]) * part.astype(np.float32)
    x, y = np.abs(np.float32(re))[..., None], np.abs(np.float32(im))[..., None]
    distance = (x - point[0]) ** 2 + (y - point[1]) ** 2
    distance[..., (point < 0).any(axis=0)] = np.inf
    found = codes[:, distance.argmin(axis=-1)]
    turn = np.where(found % 2 == 0, re < 0, im < 0)
    return ((found + 2 * turn) % 4).astype(np.uint8)


def rounded_halves(x: npt.NDArray[np.float32], *, numbers: bool = False) -> npt.NDArray[np.float32]:
    """Rows [..., 2 m] as a layer with activation_bits 8 reads them: q / a, or with ``numbers`` the whole numbers q."""
    found = np.empty_like(x)
    half = x.shape[-1] // 2
    for index in np.ndindex(*x.shape[:-1]):
        for part in (slice(0, half), slice(half, None)):
            a = np.float32(127) / max(np.abs(x[index][part]).max(), np.float32(1e-5))
            q = np.clip(np.round(x[index][part] * a), -128, 127)
            assert q.dtype == np.float32
            found[index][part] = q if numbers else q / a
    return found
