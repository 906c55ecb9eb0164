"""What can be chosen about a graph: the words of options, and the table of formats, whose rows are imported when they are used.

Front ends list the choices, and onnx_ir takes a third of a second to import.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from fairy2i_export.onnx_graph.formats.base import Format

KVCache = Literal["float32", "float16", "int8"]
Embedding = Literal["float32", "float16", "int8", "shared"]
DenseType = Literal["float32", "float16"]

KV_CACHES: tuple[KVCache, ...] = get_args(KVCache)
EMBEDDINGS: tuple[Embedding, ...] = get_args(Embedding)
DENSE_TYPES: tuple[DenseType, ...] = get_args(DenseType)
ACCURACY_LEVELS = (0, 4)  # of MatMulNBits: float32 activations, int8 ones


class _Rows(Mapping[str, Any]):
    """A table of objects by name; each is imported when it is asked for."""

    def __init__(self, **places: str) -> None:
        self._places = places  # name -> MODULE:OBJECT, the module from this package on

    def __getitem__(self, name: str) -> Any:
        module, _, found = self._places[name].partition(":")
        return getattr(import_module(f"{__package__}.{module}"), found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


# formats that a quantized layer may have (--backend)
FORMATS: Mapping[str, Format] = _Rows(
    fairy2i="formats.fairy2i:FAIRY2I",
    matmulnbits="formats.matmulnbits:MATMULNBITS",
    dense="formats.dense:DENSE",
)
