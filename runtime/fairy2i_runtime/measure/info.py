"""What ``fairy2i info`` reports: the installation, and a model folder."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from fairy2i_runtime.engine.threads import default_threads
from fairy2i_runtime.errors import Fairy2iRuntimeError
from fairy2i_runtime.folder import ModelFolder
from fairy2i_runtime.measure.memory import memory_rows, model_memory, model_shape
from fairy2i_runtime.model import load
from fairy2i_runtime.ops.core import chosen_kernels, library_info, one_tile_layer
from fairy2i_runtime.ops.library import library_path
from fairy2i_runtime.ops.tuning import TUNING_VARIABLE, kept_tuning


def installation_info() -> dict[str, Any]:
    """The operator library, its kernels, the processor, onnxruntime. A missing library is reported, not raised."""
    try:
        library: dict[str, Any] = {**library_info(), "tuning": tuning_info(default_threads())}
    except (Fairy2iRuntimeError, OSError) as error:
        library = {"error": str(error)}
    return {
        "library": library,
        "onnxruntime": ort.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "default_threads": default_threads(),
    }


def tuning_info(threads: int) -> dict[str, str]:
    """The settings that layers get for this processor, and who says so.

    Args:
        threads: of the sessions.
    """
    kept = kept_tuning(threads)
    by_environment = bool((os.environ.get(TUNING_VARIABLE) or "").strip())
    source = TUNING_VARIABLE if by_environment else "the library" if kept is None else "fairy2i tune"
    return {"settings": one_tile_layer("auto", tuning=kept).tuning, "source": source}


def model_info(folder: Path, context_length: int | None = None, *, trust_graph: bool = False) -> dict[str, Any]:
    """What a model folder holds and how much memory it takes.

    Args:
        folder: the model folder.
        context_length: the context to estimate the memory for; None = what the model was built for.
        trust_graph: as for :func:`fairy2i_runtime.load`.

    Raises:
        Fairy2iRuntimeError: if the folder does not load.
    """
    model = load(folder, threads=1, context_length=context_length, use_library=_library_exists(), trust_graph=trust_graph)
    files = {path.name: path.stat().st_size for path in sorted(model.folder.path.iterdir()) if path.is_file()}
    cache = model.decoder.cache_shape
    shape = model_shape(
        model.folder.path,
        model.metadata,
        layers=cache.layers,
        kv_heads=cache.kv_heads,
        head_size=cache.head_size,
        cache_bytes=np.dtype(cache.dtype).itemsize,
        vocab=model.decoder.vocab,
        selects=model.decoder.selects,
    )
    return {
        "folder": str(folder),
        "metadata": dict(sorted(model.metadata.items())),
        "files": files,
        "layers": cache.layers,
        "kv_heads": cache.kv_heads,
        "head_size": cache.head_size,
        "kv_cache_type": np.dtype(cache.dtype).name,
        "vocab_size": model.decoder.vocab,
        "chat_template": model.chat_template is not None,
        "eos_ids": sorted(model.eos_ids),
        "context_length": model.context_length,
        "kernel": _kernel_name(model.folder),
        "memory": model_memory(model.folder.model_file, shape, model.context_length).as_dict(),
    }


def _kernel_name(folder: ModelFolder) -> str | None:
    """The kernel family that runs if nobody chooses one; None for models without the operator, or without a library here.

    More than one, separated by blanks, if the environment chooses auto: that for few rows of activations first.
    """
    if not (folder.needs_library and _library_exists()):
        return None
    try:
        found = chosen_kernels(folder.kernel_to_run(None), tuning=kept_tuning(default_threads()))
        return " ".join(kernel.family for kernel in found.values())
    except Fairy2iRuntimeError:
        return None


def _library_exists() -> bool:
    try:
        library_path()
    except Fairy2iRuntimeError:
        return False
    return True


def installation_text(info: dict[str, Any]) -> str:
    """:func:`installation_info` for people."""
    library = info["library"]
    lines = []
    if "error" in library:
        lines.append(f"operator library  not usable: {library['error']}")
    else:
        lines.append(f"operator library  {library['path']}")
        lines.append(f"  version         {library['version']}")
        lines.append(f"  CPU features    {' '.join(library['cpu_features']) or 'none it makes use of'}")
        for kernel in library["kernels"]:
            state = "default" if kernel["is_default"] else "available" if kernel["available"] else "not on this CPU"
            lines.append(f"  kernel          {kernel['family']} {kernel['isa']}: {state}")
        lines.append(f"  settings        {library['tuning']['settings']} (of {library['tuning']['source']})")
    threads = info["default_threads"] or "onnxruntime's choice (one per physical core)"
    lines += [
        f"onnxruntime       {info['onnxruntime']}",
        f"platform          {info['platform']}",
        f"default threads   {threads}",
    ]
    return "\n".join(lines)


def model_text(info: dict[str, Any]) -> str:
    """:func:`model_info` for people."""
    lines = [f"model             {info['folder']}"]
    lines += [f"  {key.removeprefix('fairy2i.'):<15} {value}" for key, value in info["metadata"].items()]
    lines += [f"  {name:<27} {size:>14,} bytes" for name, size in info["files"].items()]
    lines += [
        f"layers            {info['layers']}, {info['kv_heads']} key-value heads of {info['head_size']}",
        f"vocabulary        {info['vocab_size']:,}, end of text: {', '.join(map(str, info['eos_ids'])) or 'none'}",
        f"chat template     {'yes' if info['chat_template'] else 'no (base model)'}",
        *([f"kernel            {info['kernel']}"] if info["kernel"] else []),
        f"memory (estimated), keys and values are {info['kv_cache_type']}:",
        *(f"  {what:<33} {size:>9}" for what, size in memory_rows(info["memory"], info["context_length"])),
    ]
    return "\n".join(lines)
