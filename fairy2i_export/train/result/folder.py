"""The folder of a run: who may write to it, and what is left of it when the run has failed.

recipe.json        written first; says what the folder is
data/              tokenized texts
checkpoints/       of the run, for continuing it
logs/              TensorBoard
config.json, model.safetensors, tokenizer files, README.md, curves.png, training_log.json: the result, written last (save.py)
.replaced/         what was there before and is replaced, until the first checkpoint
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fairy2i_export.errors import OptionError, OutputError
from fairy2i_export.output.disk.own_files import check_own
from fairy2i_export.source.text.tokenizer_files import COPIED, MORE_TEMPLATES
from fairy2i_export.train.data.documents import fingerprint
from fairy2i_export.train.loop.checkpoint_guard import good_checkpoints
from fairy2i_export.train.recipe import Recipe
from fairy2i_runtime.regular_file import read_json_value

RECIPE, LOG, CONFIG, CHECKPOINTS, LOGS = "recipe.json", "training_log.json", "config.json", "checkpoints", "logs"
DATA = "data"  # of a replaced run: it is checked against the texts anyway
PARTIAL = ".result"
CURVES = ".curves.png"
_LOCK, _ASIDE = ".lock", ".replaced"
_BEGUN = (_LOCK, f".{RECIPE}")  # what a run leaves that is killed before the folder says what it is
_OWN = (
    CHECKPOINTS,
    LOGS,
    PARTIAL,
    CURVES,
    f".{RECIPE}",
    RECIPE,
)  # what a run without a result leaves, beside DATA and _LOCK
_WRITTEN = re.compile(  # all that a run writes
    "|".join(
        (
            *map(re.escape, (*_OWN, LOG, DATA, _LOCK, _ASIDE, MORE_TEMPLATES)),
            *map(re.escape, ("README.md", "tokenizer.json", *COPIED)),
            r"curves\.png",
            r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?",
        )
    )
)


class Claim:
    """A folder that this process may train into. What was there stays until training has something to show for it.

    Args:
        recipe: of the run.
        facts: further entries of recipe.json.
        before: names of what was in the folder.
    """

    def __init__(self, recipe: Recipe, facts: dict[str, Any], before: set[str]) -> None:
        self._recipe, self._facts, self._out, self._before = recipe, facts, recipe.output, before
        self._continues = not recipe.force and bool(good_checkpoints(self._out / CHECKPOINTS))
        self._begun = False
        if RECIPE not in before:
            self._write_recipe()

    def begin(self) -> None:
        """All is read and checked: put aside what is not continued, and say in recipe.json what the folder is now.

        Raises:
            OutputError: the folder cannot be written.
        """
        out, aside = self._out, self._out / _ASIDE
        self._begun = True
        with _refusals(out):
            if not self._continues and RECIPE in self._before:
                aside.mkdir()
                for name in sorted(self._before - {DATA, _LOCK, _ASIDE, RECIPE}):
                    if self._recipe.force or name in _OWN:
                        os.replace(out / name, aside / name)
                shutil.copyfile(out / RECIPE, aside / f".{RECIPE}")
                os.replace(aside / f".{RECIPE}", aside / RECIPE)
        self._write_recipe()

    def settle(self) -> None:
        """There is a checkpoint, or a result: what it replaces is no longer needed."""
        shutil.rmtree(self._out / _ASIDE, ignore_errors=True)

    def give_up(self) -> bool:
        """The run ends early: leave its checkpoints, or else everything as it was. Returns whether there is a checkpoint."""
        if self._continues or (self._begun and good_checkpoints(self._out / CHECKPOINTS)):
            self.settle()
            return True
        if RECIPE not in self._before:
            _remove_own(self._out)
        elif self._begun:
            _restore(self._out)
        if DATA not in self._before:
            shutil.rmtree(self._out / DATA, ignore_errors=True)
        return False

    def _write_recipe(self) -> None:
        partial = self._out / f".{RECIPE}"
        with _refusals(self._out):
            partial.write_text(json.dumps({**self._recipe.as_json(), **self._facts}, indent=2) + "\n", encoding="utf-8")
            os.replace(partial, self._out / RECIPE)


@contextmanager
def claimed(recipe: Recipe, global_batch: int, source: Path) -> Iterator[Claim]:
    """Make the folder, or take over that of an unfinished run with the same recipe, and keep others out of it.

    If the block raises before there is a checkpoint, everything is as it was: a folder that was made here is gone.

    Raises:
        OutputError: the folder holds something else, or a finished run, and may not be replaced; another process trains into
            it; or it cannot be made.
        OptionError: it holds checkpoints of a run with another recipe.
    """
    check_place(recipe, source)
    out = recipe.output
    made = [path for path in (out, *out.parents) if not os.path.lexists(path)]
    try:
        with _refusals(out):
            out.mkdir(parents=True, exist_ok=True)
            lock = FileLock(out / _LOCK)
            lock.acquire(timeout=0)
        with lock:
            try:
                check_place(recipe, source)  # somebody may have put something there meanwhile
                _recover(out)
                facts = {"global_batch": global_batch, "texts": fingerprint((*recipe.data, *recipe.eval_data))}
                _check_earlier(recipe, facts)
                claim = Claim(recipe, facts, {path.name for path in out.iterdir()})
                try:
                    yield claim
                except BaseException:
                    if claim.give_up():
                        made = []
                    raise
                claim.settle()
                made = []
            finally:
                with suppress(OSError):  # Windows removes no open file
                    (out / _LOCK).unlink()  # also that of a run that was killed
    except Timeout as error:
        raise OutputError(f"{out}: another process trains into this folder; wait, or choose another") from error
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


def check_place(recipe: Recipe, source: Path) -> None:
    """Raise OutputError if a run cannot write to its folder, or if that is the source's or holds what no run has left there."""
    out = recipe.output
    if out.resolve() == source.resolve() or out.resolve() in source.resolve().parents:
        raise OutputError(f"{out}: holds the source checkpoint; choose another folder")
    place = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    if place != out and not place.is_dir():
        raise OutputError(f"{out}: cannot be made: {place} is no folder")
    with _refusals(out):
        if out.exists() and (not out.is_dir() or any(path.name not in _BEGUN for path in out.iterdir())):
            _earlier(out)
        if out.is_dir():
            check_own(out, inside=True)
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"{out}: cannot be written: no permission to write to {place}")


@contextmanager
def _refusals(out: Path) -> Iterator[None]:
    """Turn what the system refuses into an error for the user."""
    try:
        yield
    except Timeout:  # an OSError, too
        raise
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}") from error


def _earlier(out: Path) -> dict[str, Any]:
    """The recipe of the run that made the folder."""
    try:
        earlier: dict[str, Any] = read_json_value(out / RECIPE)
        earlier["source"]
    except (OSError, ValueError, KeyError, TypeError):
        raise OutputError(
            f"{out}: exists and is no training folder (no readable {RECIPE} in it), so it is neither continued nor replaced; "
            "choose another folder"
        ) from None
    return earlier


def _check_earlier(recipe: Recipe, facts: dict[str, Any]) -> None:
    """Raise if an earlier run in the folder can neither be continued nor replaced."""
    out = recipe.output
    if not (out / RECIPE).is_file():
        return
    if recipe.force:
        if foreign := sorted(path.name for path in out.iterdir() if not _WRITTEN.fullmatch(path.name)):
            raise OutputError(
                f"{out}: holds what no training has written ({', '.join(foreign[:5])}), so --force does not replace it; move that "
                "elsewhere, or choose another folder"
            )
        return
    earlier = _earlier(out)
    if _is_finished(out):
        raise OutputError(f"{out}: holds a finished run; choose another folder, or --force to train anew in this one")
    if not good_checkpoints(out / CHECKPOINTS):
        return  # nothing that would be lost or mixed up
    different = recipe.differences(earlier)
    if earlier.get("global_batch") != facts["global_batch"]:
        there, here = earlier.get("global_batch"), facts["global_batch"]
        different.append(f"sequences per step, all processes: {there} there, {here} here")
    if not different and earlier.get("texts") != facts["texts"]:
        different.append("a text has changed since (its size or its time of change)")
    if different:
        raise OptionError(
            f"{out}: holds an unfinished run with other options: {'; '.join(different)}. Continue with the same options, "
            "choose another folder, or --force to start anew"
        )


def _is_finished(out: Path) -> bool:
    return (out / LOG).is_file() and (out / CONFIG).is_file()


def _recover(out: Path) -> None:
    """Put right what a run left that was killed.

    What it had put aside comes back if it has nothing to show yet; the empty folder of a result that is all in place goes.
    """
    if _is_finished(out) and not any(path.is_file() for path in (out / PARTIAL).rglob("*")):
        shutil.rmtree(out / PARTIAL, ignore_errors=True)
    if (out / _ASIDE).is_dir():
        if (out / _ASIDE / RECIPE).is_file() and (good_checkpoints(out / CHECKPOINTS) or _is_finished(out)):
            shutil.rmtree(out / _ASIDE, ignore_errors=True)
        else:
            _restore(out)


def _restore(out: Path) -> None:
    """Put back what is aside. Until all was put aside there is no recipe.json there, and what is in the folder is not the run's."""
    aside = out / _ASIDE
    with suppress(OSError):  # the error that led here is the one to tell
        if (aside / RECIPE).is_file():
            _remove_own(out)
            os.replace(aside / RECIPE, out / RECIPE)
        for path in list(aside.iterdir()):
            if path.name == f".{RECIPE}":
                path.unlink()
            elif not os.path.lexists(out / path.name):
                os.replace(path, out / path.name)
        aside.rmdir()


def _remove_own(out: Path) -> None:
    for name in _OWN:
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink(missing_ok=True)
