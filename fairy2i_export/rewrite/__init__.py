"""The second front end: rewrite the linear layers of an existing ONNX model to Fairy2iMatMul nodes (docs/rewrite.md).

First the file is checked and brought into a form that onnx_ir holds whole (opening/). Then come the passes, in this order
(:mod:`.pipeline`):

    find       every product with a matrix (patterns/)
    select     --include and --exclude
    resolve    shape and format of those that are constant (values/)
    recognise  latent weights, or sums of stages already
    replace    nodes, fused biases, lazily packed weights (patterns/, replacement.py, operands.py)
    prune      what only the replaced nodes used
    define     function body, operator sets

What they made is tried in ONNX Runtime (trial.py) before the work, without its data, and before it is moved into place.
"""

from __future__ import annotations

from fairy2i_export.rewrite.pipeline import rewrite_onnx
from fairy2i_export.rewrite.result.report import RewriteReport

__all__ = ["RewriteReport", "rewrite_onnx"]
