"""Run Fairy2i models with onnxruntime: numpy, onnxruntime, tokenizers and jinja2, no torch.

>>> import fairy2i_runtime
>>> model = fairy2i_runtime.load("stories-onnx")
>>> model.generate("Once upon a time", max_new_tokens=50).text
"""

from __future__ import annotations

from fairy2i_runtime.version import __version__ as __version__

TYPE_CHECKING = False  # commands begin here, and typing itself takes a while to import
if TYPE_CHECKING:
    from typing import Any

    from fairy2i_runtime import genai
    from fairy2i_runtime.errors import Fairy2iRuntimeError
    from fairy2i_runtime.model import Model, load
    from fairy2i_runtime.ops import core
    from fairy2i_runtime.ops.library import library_path, register
    from fairy2i_runtime.text.conversation import Conversation
    from fairy2i_runtime.text.generation import TextStream
    from fairy2i_runtime.text.options import GenerationOptions
    from fairy2i_runtime.text.result import Result, Timings

__all__ = [
    "Conversation",
    "Fairy2iRuntimeError",
    "GenerationOptions",
    "Model",
    "Result",
    "TextStream",
    "Timings",
    "core",
    "genai",
    "library_path",
    "load",
    "register",
]

# imported when asked for: the exporter and training use the operator library without onnxruntime, which takes 20 MB, and a
# command hears Ctrl-C before it imports anything that takes its time
_MODULES = {
    "Conversation": "text.conversation",
    "Fairy2iRuntimeError": "errors",
    "GenerationOptions": "text.options",
    "Model": "model",
    "Result": "text.result",
    "TextStream": "text.generation",
    "Timings": "text.result",
    "core": "ops.core",
    "genai": "genai",
    "library_path": "ops.library",
    "load": "model",
    "register": "ops.library",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f"{__name__}.{_MODULES[name]}")
    return module if _MODULES[name].rpartition(".")[2] == name else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
