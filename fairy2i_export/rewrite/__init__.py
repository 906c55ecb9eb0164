"""The second front end: rewrite the linear layers of an existing ONNX model to Fairy2iMatMul nodes (docs/rewrite.md).

The passes, in the order in which they run (:mod:`.pipeline`):

    find       every product with a matrix                          .find
    resolve    which of those matrices are constant, and their value  .constants, .resolve
    select     --include and --exclude                               .select
    recognise  latent weights, or sums of stages already             .recognise
    replace    nodes, fused biases, lazily packed weights            .replace, .weights
    prune      what only the replaced nodes used                     .prune
    define     function body, operator sets, metadata                .define
"""

from __future__ import annotations

from fairy2i_export.rewrite.pipeline import rewrite_onnx
from fairy2i_export.rewrite.report import RewriteReport

__all__ = ["RewriteReport", "rewrite_onnx"]
