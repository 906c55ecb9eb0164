"""What ``fairy2i info`` reports: the installation, and a model folder."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from fairy2i_runtime.engine.decoder import PREFILL_CHUNK
from fairy2i_runtime.engine.threads import default_threads
from fairy2i_runtime.errors import Fairy2iRuntimeError
from fairy2i_runtime.model import Model, load
from fairy2i_runtime.ops.core import library_info
from fairy2i_runtime.ops.library import library_path

MIB = 2**20


def installation_info() -> dict[str, Any]:
    """The operator library, its kernels, the processor, onnxruntime. A missing library is reported, not raised."""
    try:
        library: dict[str, Any] = library_info()
    except (Fairy2iRuntimeError, OSError) as error:
        library = {"error": str(error)}
    return {
        "library": library,
        "onnxruntime": ort.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "default_threads": default_threads(),
    }


def model_info(folder: Path, context_length: int | None = None) -> dict[str, Any]:
    """What a model folder holds and how much memory it takes.

    Args:
        folder: the model folder.
        context_length: the context to estimate the memory for; None = what the model was built for.

    Raises:
        Fairy2iRuntimeError: if the folder does not load.
    """
    model = load(folder, threads=1, context_length=context_length, use_library=_library_exists())
    files = {path.name: path.stat().st_size for path in sorted(model.folder.path.iterdir()) if path.is_file()}
    cache = model.decoder.cache_shape
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
        "memory": memory_estimate(model, files),
    }


def memory_estimate(model: Model, files: dict[str, int]) -> dict[str, int]:
    """Bytes of memory at a full context, without Python and onnxruntime themselves.

    The weights are mapped from the file: the system can drop and re-read them, and processes share them.
    """
    weights = sum(size for name, size in files.items() if name.startswith(model.folder.model_file.name))
    cache = model.decoder.cache_shape.size_bytes(model.context_length)
    logits = 4 * model.decoder.vocab * min(PREFILL_CHUNK, model.context_length)
    return {"weights_mapped": weights, "kv_cache": cache, "logits": logits, "total": weights + cache + logits}


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
    threads = info["default_threads"] or "onnxruntime's choice (one per physical core)"
    lines += [
        f"onnxruntime       {info['onnxruntime']}",
        f"platform          {info['platform']}",
        f"default threads   {threads}",
    ]
    return "\n".join(lines)


def model_text(info: dict[str, Any]) -> str:
    """:func:`model_info` for people."""
    memory = info["memory"]
    lines = [f"model             {info['folder']}"]
    lines += [f"  {key.removeprefix('fairy2i.'):<15} {value}" for key, value in info["metadata"].items()]
    lines += [f"  {name:<27} {size:>14,} bytes" for name, size in info["files"].items()]
    lines += [
        f"layers            {info['layers']}, {info['kv_heads']} key-value heads of {info['head_size']}",
        f"vocabulary        {info['vocab_size']:,}, end of text: {', '.join(map(str, info['eos_ids'])) or 'none'}",
        f"chat template     {'yes' if info['chat_template'] else 'no (base model)'}",
        f"memory at {info['context_length']:,} tokens of context, without Python and onnxruntime themselves:",
        f"  weights         {memory['weights_mapped'] / MIB:10.2f} MiB, mapped from the file",
        f"  key-value cache {memory['kv_cache'] / MIB:10.2f} MiB ({info['kv_cache_type']})",
        f"  logits          {memory['logits'] / MIB:10.2f} MiB",
        f"  total           {memory['total'] / MIB:10.2f} MiB",
    ]
    return "\n".join(lines)
