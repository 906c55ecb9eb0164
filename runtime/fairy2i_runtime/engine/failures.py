"""What it means when onnxruntime does not open or run a model, and what to do about it: one message for each cause."""

from __future__ import annotations

import re
from pathlib import Path

from fairy2i_runtime.errors import Fairy2iRuntimeError, LibraryError, ModelFolderError, OutOfMemoryError, printable
from fairy2i_runtime.ops.library import ort_version

OLDEST_ORT = (1, 24)  # what the package asks for; several older ones run models with a float32 or float16 cache
INT8_CACHE_ORT = (1, 27)
_NO_MEMORY = re.compile(r"bad_alloc|bad allocation|cannot allocate memory|failed to allocate memory|not enough memory", re.I)


def is_memory_short(error: BaseException) -> bool:
    """Whether memory was short; libraries tell it in many ways."""
    return isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)) is not None


def problem_of(error: BaseException) -> str:
    """What an error of onnxruntime says, without its numbers, in one printable line."""
    said = str(error)
    if isinstance(error, UnicodeDecodeError):  # a message was cut within a character, and Python could not make a text of it
        said = bytes(error.object).decode("utf-8", "replace")
    return printable(re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Exception during initialization: )?", "", said))


def opening_failure(name: str, error: Exception, model: Path | None, opener: str = "onnxruntime") -> Fairy2iRuntimeError:
    """The error to raise where a model could not be opened.

    Args:
        name: what a message calls the model.
        error: what the opener raised.
        model: its file, if it is one.
        opener: what raised it.
    """
    if is_memory_short(error):
        return OutOfMemoryError(
            f"{name}: there is not enough memory to load it{_limit()}; fairy2i info shows what it needs: raise the limit, end "
            "other programs, or take a model with fewer parameters or stages"
        )
    problem = problem_of(error)
    data = None if model is None else model.with_name(f"{model.name}.data")
    if data is not None and data.name in problem and not data.is_file():
        return ModelFolderError(
            f"{data} is missing: it holds the weights of {name} and has to lie beside it under this name; copy the whole folder, "
            "or export the model again"
        )
    if data is not None and data.is_file() and "out of bounds" in problem:
        return ModelFolderError(
            f"{data} ends too early, after {data.stat().st_size} bytes: expected all weights of {name}; was it copied or "
            "downloaded completely? Copy it again, or export the model again"
        )
    if opener == "onnxruntime":
        if "tensor(int8)" in problem and ort_version() < INT8_CACHE_ORT:
            return too_old(name, INT8_CACHE_ORT, "for its int8 key-value cache")
        if ort_version() < OLDEST_ORT:
            return too_old(name, OLDEST_ORT, f"to open it; this one says: {problem[:200]}")
    return ModelFolderError(
        f"{name}: {opener} cannot open it: {problem} (if a file is damaged or missing, export the model again)"
    )


def too_old(name: str, needed: tuple[int, int], what_for: str) -> LibraryError:
    """The error of an onnxruntime that is too old for a model."""
    import onnxruntime as ort

    return LibraryError(
        f"{name}: expected onnxruntime {needed[0]}.{needed[1]} or newer, found {ort.__version__}: run pip install --upgrade "
        f"onnxruntime (it is needed {what_for})"
    )


def _limit() -> str:
    """How much memory the process may have, if something says so."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    except (ImportError, OSError):  # Windows has none
        return ""
    return "" if limit == resource.RLIM_INFINITY else f" (the process may use {limit / 1e6:.0f} MB of addresses: ulimit -v)"
