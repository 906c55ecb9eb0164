"""Run Fairy2i models with onnxruntime: numpy, onnxruntime, tokenizers and jinja2, no torch.

>>> import fairy2i_runtime
>>> model = fairy2i_runtime.load("stories-onnx")
>>> model.generate("Once upon a time", max_new_tokens=50).text
"""

from __future__ import annotations

from fairy2i_runtime.conversation import Conversation
from fairy2i_runtime.errors import Fairy2iRuntimeError
from fairy2i_runtime.generation import Result, TextStream, Timings
from fairy2i_runtime.library import library_path, register
from fairy2i_runtime.model import Model, load

__all__ = [
    "Conversation",
    "Fairy2iRuntimeError",
    "Model",
    "Result",
    "TextStream",
    "Timings",
    "library_path",
    "load",
    "register",
]
__version__ = "0.1.0"
