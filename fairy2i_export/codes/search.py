"""Codes chosen in a metric, pair of columns by pair of columns: the C library's search (custom_ops/src/quantizer/search.c).

Everything is transposed and in an order of pairs that the caller chooses, as fairy2i.h describes it at ``f2i_search``: rows
2 p and 2 p + 1 of the arrays here are the columns j and j + m of pair p, and hold the n upper and then the n lower rows of the
layer. The functions release the GIL; different complex rows may be worked on at the same time.
"""

from __future__ import annotations

from typing import Any

from fairy2i_export.codes.native import F32, U8, Rows, library
from fairy2i_export.errors import FormatError


class Search:
    """A matrix in the making; arrays are the caller's, contiguous, and ``codes`` and ``dense`` are written.

    Args:
        metric: float32 [2m, 2m], see the methods.
        scales: float32 [stages, 2 (U, W), 2 (re, im)].
        rows: float32 [2n], multipliers of outputs, none zero.
        columns: float32 [2m], multipliers of inputs, none zero.
        codes: uint8 [stages, 2, m, n].
        dense: float32 [2m, 2n], what the codes stand for.
    """

    def __init__(self, metric: F32, scales: F32, rows: F32, columns: F32, codes: U8, dense: F32) -> None:
        self._ffi, self._lib = library()
        self._struct = self._ffi.new("f2i_search *")
        self._struct.stages, _, self._struct.m, self._struct.n = codes.shape
        self._kept = []
        arrays = {"metric": metric, "scales": scales, "rows": rows, "columns": columns, "codes": codes, "dense": dense}
        for name, array in arrays.items():
            buffer = self._ffi.from_buffer("uint8_t[]" if name == "codes" else "float[]", array)
            setattr(self._struct, name, buffer)
            setattr(self._struct, f"{name}_count", len(buffer))
            self._kept.append(buffer)

    def feed_back(self, pairs: tuple[int, int], rows: Rows, values: F32) -> None:
        """Codes of a part, and their errors fed to the later pairs of the part.

        Args:
            pairs: from and to.
            rows: complex rows, from and to.
            values: float32 [2m, 2n], what the matrix should be; those of the part become ``D B^-1``, the errors by which the
                caller changes later pairs: minus ``R[part, later]`` times them.

        The metric is R, upper triangular with ``R^T R = H^-1``.
        """
        self._call("f2i_search_feed_back", *pairs, *rows, values=values)

    def anneal(self, sweeps: int, rows: Rows, pull: F32, noise: F32 | None = None, seed: int = 0) -> None:
        """Sweeps of coordinate descent over a matrix that has codes; without noise its error in the metric cannot rise.

        Args:
            sweeps: their number.
            rows: complex rows, from and to.
            pull: float32 [2n, stride], its first 2m columns H times what is missing to the matrix aimed at, kept up to date.
            noise: float32 [sweeps, n] or None: by how much each value of pull is off, at most, while codes are chosen, in
                units of the root of its column's diagonal entry of H.
            seed: of the noise, 0 to 2^32 - 1.

        The metric is H.
        """
        struct = self._ffi.new("f2i_sweeps *", {"count": sweeps, "stride": pull.shape[-1], "seed": seed})
        if noise is not None:
            struct.noise = kept = self._ffi.from_buffer("float[]", noise)
            struct.noise_count = len(kept)
        self._call("f2i_search_anneal", struct, *rows, values=pull)

    def _call(self, function: str, *arguments: Any, values: F32) -> None:
        message = self._ffi.new("f2i_message *")
        buffer = self._ffi.from_buffer("float[]", values)
        if getattr(self._lib, function)(self._struct, *arguments, buffer, len(buffer), message) != 0:
            raise FormatError(self._ffi.string(message.text).decode())
