"""A tokenizer as two ONNX graphs, for hosts that run ONNX Runtime but neither Python nor a tokenizer library.

tokenizer.json is read by :mod:`.description`, which refuses what the operators of onnxruntime-extensions cannot express;
:mod:`.byte_level` and :mod:`.sentencepiece` build tokenizer.onnx, :mod:`.detokenizer` builds detokenizer.onnx, and
:mod:`.check` compares both with the tokenizers library before :mod:`.write` puts them into a folder.
"""

from fairy2i_export.onnx_graph.tokenizer.write import (
    DETOKENIZER,
    TOKENIZER,
    TokenizerGraphs,
    make_tokenizer_graphs,
)

__all__ = ["DETOKENIZER", "TOKENIZER", "TokenizerGraphs", "make_tokenizer_graphs"]
