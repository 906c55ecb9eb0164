"""The finished model, written into the folder of its run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairy2i_export.errors import OutputError
from fairy2i_export.output.disk.held_signals import signals_held
from fairy2i_export.output.placing import place_file
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.source.text.tokenizer_files import copy_files
from fairy2i_export.train.result.folder import CHECKPOINTS, CONFIG, PARTIAL
from fairy2i_runtime.regular_file import read_json_value

_SHARD = "5GB"
_PLACED = "placed.json"  # beside the checkpoints: names of the result files that runs have written


def save_result(
    out: Path,
    checkpoint: Checkpoint,
    state: dict[str, Tensor],
    entry: dict[str, Any] | None,
    untied: bool,
    dtype: torch.dtype,
    texts: dict[str, str],
    pictures: dict[str, Path],
) -> None:
    """Write the finished model into the folder; config.json appears last.

    Args:
        out: the folder of the run.
        checkpoint: the source, whose configuration and tokenizer go along.
        state: all parameters; learned scales and multipliers stay float32.
        entry: config.json's ``fairy2i``; None for a float model.
        untied: the output layer no longer shares the embedding's matrix.
        dtype: of the weights.
        texts: further files: name -> contents.
        pictures: further files: name -> where they lie now.

    Raises:
        OutputError: the folder cannot be written, a full disk for instance.
    """
    from huggingface_hub import save_torch_state_dict

    partial = out / PARTIAL
    tied = bool(checkpoint.config.get("tie_word_embeddings")) and not untied
    tensors = {
        name: tensor.detach().cpu().to(dtype if name.endswith((".weight", ".bias")) else torch.float32).contiguous().clone()
        for name, tensor in state.items()
        if not (tied and name == "lm_head.weight")
    }
    config = {**checkpoint.config, "torch_dtype": str(dtype).removeprefix("torch.")}
    config.pop("dtype", None)
    config.pop("fairy2i", None)
    if untied:
        config["tie_word_embeddings"] = False
    if entry is not None:
        config["fairy2i"] = entry
    placed = False
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        copy_files(checkpoint, partial)
        save_torch_state_dict(tensors, partial, max_shard_size=_SHARD)
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        for name, path in pictures.items():
            os.replace(path, partial / name)
        with signals_held():  # all of it or nothing
            _place(out)
            placed = True
    except (KeyboardInterrupt, SystemExit) as stop:
        if placed:
            stop.add_note(f"interrupted: the result is complete: {out}")
        raise
    except OutputError:
        raise
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not isinstance(error, OSError) and "SafetensorError" not in type(error).__name__:
            raise
        raise OutputError(
            f"{out}: the result cannot be written: {getattr(error, 'strerror', None) or error}; the last checkpoint is whole: "
            "make room, then run the same command again"
        ) from error
    shutil.rmtree(partial, ignore_errors=True)


def _place(out: Path) -> None:
    """Put the files of the finished result where they belong, config.json last; what others have put there stays.

    Raises:
        OutputError: one of the names is taken; the result stays beside it.
    """
    files = (path for path in (out / PARTIAL).rglob("*") if not path.is_dir())  # chat templates may lie in a folder
    names = sorted((str(path.relative_to(out / PARTIAL)) for path in files), key=lambda name: (name == CONFIG, name))
    record = out / CHECKPOINTS / _PLACED
    try:
        ours = set(read_json_value(record))  # of an earlier run, or of one that was stopped in here
    except (OSError, ValueError, TypeError):
        ours = set()
    taken = [name for name in names if name not in ours and os.path.lexists(out / name)]
    if not taken:
        record.parent.mkdir(exist_ok=True)
        record.write_text(json.dumps(sorted(ours.union(names))), encoding="utf-8")
        for name in names:
            (out / PARTIAL / name).chmod(0o644)  # safetensors makes private files
            (out / name).parent.mkdir(exist_ok=True)
            if not place_file(out / PARTIAL / name, out / name, lambda path: str(path.relative_to(out)) in ours):
                taken.append(name)
    if taken:
        raise OutputError(
            f"{out}: {', '.join(taken)}: somebody has put something of that name there, and it is left as it is. The trained "
            f"model is kept in {out / PARTIAL}; move what is in the way elsewhere and run the same command again"
        )
