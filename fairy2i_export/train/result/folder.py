"""The folder of a run: who may write to it, and the finished model in it.

recipe.json        written first; says what the folder is
data/              tokenized texts
checkpoints/       of the run, for continuing it
logs/              TensorBoard
config.json, model.safetensors, tokenizer files, README.md, curves.png, training_log.json: the result, written last
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from fairy2i_export.errors import OptionError, OutputError
from fairy2i_export.output.placing import place_file
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.source.tokenizer_files import COPIED, copy_files
from fairy2i_export.train.data.documents import fingerprint
from fairy2i_export.train.loop.checkpoint_guard import good_checkpoints
from fairy2i_export.train.recipe import Recipe

RECIPE, LOG, CONFIG, CHECKPOINTS = "recipe.json", "training_log.json", "config.json", "checkpoints"
_LOCK = ".lock"
DATA = "data"  # of a replaced run: it is checked against the texts anyway
_PARTIAL = ".result"
_PLACED = "placed.json"  # beside the checkpoints: names of the result files that runs have written
_OURS = re.compile(  # all that a run writes
    "|".join(
        (
            *map(re.escape, (RECIPE, f".{RECIPE}", LOG, CHECKPOINTS, "logs", DATA, _LOCK, _PARTIAL)),
            *map(re.escape, ("README.md", *COPIED)),
            r"\.?curves\.png",
            r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?",
        )
    )
)
_SHARD = "5GB"


@contextmanager
def claimed(recipe: Recipe, global_batch: int, source: Path) -> Iterator[None]:
    """Make the folder, or take over that of an unfinished run with the same recipe, and keep others out of it.

    Raises:
        OutputError: the folder holds something else, or a finished run, and may not be replaced; another process trains into
            it; or it cannot be made.
        OptionError: it holds checkpoints of a run with another recipe.
    """
    _check_place(recipe, source)
    try:
        recipe.output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(recipe.output / _LOCK)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(f"{recipe.output}: another process trains into this folder; wait, or choose another") from error
    except OSError as error:
        raise OutputError(f"{recipe.output}: cannot be written: {error.strerror or error}") from error
    with lock:
        _check_place(recipe, source)  # somebody may have put something there meanwhile
        _claim(recipe, global_batch)
        yield


def _check_place(recipe: Recipe, source: Path) -> None:
    """Raise OutputError if the folder is the source's or holds what no run has left there."""
    out = recipe.output
    if out.resolve() == source.resolve() or out.resolve() in source.resolve().parents:
        raise OutputError(f"{out}: holds the source checkpoint; choose another folder")
    if out.exists() and (not out.is_dir() or any(path.name != _LOCK for path in out.iterdir())):
        _earlier(out)


def _claim(recipe: Recipe, global_batch: int) -> None:
    out = recipe.output
    try:
        if (out / RECIPE).is_file():
            _take_over(recipe, global_batch)
        partial = out / f".{RECIPE}"
        facts = {"global_batch": global_batch, "texts": fingerprint((*recipe.data, *recipe.eval_data))}
        partial.write_text(json.dumps({**recipe.as_json(), **facts}, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, out / RECIPE)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from error


def _earlier(out: Path) -> dict[str, Any]:
    """The recipe of the run that made the folder."""
    try:
        earlier: dict[str, Any] = json.loads((out / RECIPE).read_text(encoding="utf-8"))
        earlier["source"]
    except (OSError, ValueError, KeyError, TypeError):
        raise OutputError(
            f"{out}: exists and is no training folder (no readable {RECIPE} in it), so it is neither continued nor replaced; "
            "choose another folder"
        ) from None
    return earlier


def _take_over(recipe: Recipe, global_batch: int) -> None:
    out, earlier = recipe.output, _earlier(recipe.output)
    if recipe.force:
        if foreign := sorted(path.name for path in out.iterdir() if not _OURS.fullmatch(path.name)):
            raise OutputError(
                f"{out}: holds what no training has written ({', '.join(foreign[:5])}), so --force does not replace it; move that "
                "elsewhere, or choose another folder"
            )
        for path in out.iterdir():
            if path.name in (DATA, _LOCK):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        return
    if (out / LOG).is_file() and (out / CONFIG).is_file():
        raise OutputError(f"{out}: holds a finished run; choose another folder, or --force to train anew in this one")
    if not good_checkpoints(out / CHECKPOINTS):
        return  # nothing that would be lost or mixed up
    different = recipe.differences(earlier)
    if earlier.get("global_batch") != global_batch:
        different.append(f"sequences per step, all processes: {earlier.get('global_batch')} there, {global_batch} here")
    if not different and earlier.get("texts") != fingerprint((*recipe.data, *recipe.eval_data)):
        different.append("a text has changed since (its size or its time of change)")
    if different:
        raise OptionError(
            f"{out}: holds an unfinished run with other options: {'; '.join(different)}. Continue with the same options, "
            "choose another folder, or --force to start anew"
        )


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

    partial = out / _PARTIAL
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
        _place(out)
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
    files = (path for path in (out / _PARTIAL).rglob("*") if not path.is_dir())  # chat templates may lie in a folder
    names = sorted((str(path.relative_to(out / _PARTIAL)) for path in files), key=lambda name: (name == CONFIG, name))
    record = out / CHECKPOINTS / _PLACED
    try:
        ours = set(json.loads(record.read_text(encoding="utf-8")))  # of an earlier run, or of one that was stopped in here
    except (OSError, ValueError, TypeError):
        ours = set()
    taken = [name for name in names if name not in ours and os.path.lexists(out / name)]
    if not taken:
        record.parent.mkdir(exist_ok=True)
        record.write_text(json.dumps(sorted(ours.union(names))), encoding="utf-8")
        for name in names:
            (out / _PARTIAL / name).chmod(0o644)  # safetensors makes private files
            (out / name).parent.mkdir(exist_ok=True)
            if not place_file(out / _PARTIAL / name, out / name, lambda path: str(path.relative_to(out)) in ours):
                taken.append(name)
    if taken:
        raise OutputError(
            f"{out}: {', '.join(taken)}: somebody has put something of that name there, and it is left as it is. The trained "
            f"model is kept in {out / _PARTIAL}; move what is in the way elsewhere and run the same command again"
        )
