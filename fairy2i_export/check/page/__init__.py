"""``fairy2i report``: one self-contained page that shows what quantization and the kernels did to a model."""

from __future__ import annotations
