"""The second front end: rewrite the linear layers of an existing ONNX model to Fairy2iMatMul nodes (docs/rewrite.md).

The passes, in the order in which they run (:mod:`.pipeline`):

    find       every product with a matrix (patterns/)
    select     --include and --exclude
    resolve    shape and format of those that are constant (values/)
    recognise  latent weights, or sums of stages already
    replace    nodes, fused biases, lazily packed weights (patterns/, replacement.py, operands.py)
    prune      what only the replaced nodes used
    define     function body, operator sets
"""

from __future__ import annotations

from fairy2i_export.rewrite.pipeline import rewrite_onnx
from fairy2i_export.rewrite.report import RewriteReport

__all__ = ["RewriteReport", "rewrite_onnx"]
