"""Run Fairy2i models with onnxruntime: numpy, onnxruntime, tokenizers and jinja2, no torch.

>>> import fairy2i_runtime
>>> model = fairy2i_runtime.load("stories-onnx")
>>> model.generate("Once upon a time", max_new_tokens=50).text
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fairy2i_runtime.errors import Fairy2iRuntimeError
from fairy2i_runtime.library import library_path, register

if TYPE_CHECKING:
    from fairy2i_runtime.conversation import Conversation
    from fairy2i_runtime.generation import Result, TextStream, Timings
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

# imported when asked for: the exporter and training use the operator library without onnxruntime, which takes 20 MB
_MODULES = {
    "Conversation": "conversation",
    "Model": "model",
    "Result": "generation",
    "TextStream": "generation",
    "Timings": "generation",
    "load": "model",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
