"""A calibration or a training that is killed at a named point is continued by the same command, with the same bytes.

What it leaves is never taken for a result: an export has no folder of its name yet, a training no config.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from test_named_faults import contents

from export_helpers import make_checkpoint
from faulty_runs import Ask, asking
from named_points import CALIBRATION, FINISHED, TRAINING
from training_helpers import curve, make_recipe, write_text

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork and SIGKILL")


@pytest.fixture(scope="module")
def program() -> Iterator[Ask]:
    with asking("calibrate", "train", OMP_NUM_THREADS="1") as ask:
        yield ask


# ---- calibrations


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write_text(folder / "text", 60, seed=1)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    return make_checkpoint(folder / "model", **sizes, max_position_embeddings=64)


@pytest.fixture(scope="module")
def calibrate(program: Ask, source: Path) -> Ask:
    """``calibrate(out, point)``: an export that chooses stages, calibrates two layers and lm_head, and tunes all."""
    text = {"calibrate": [str(source.parent / "text")], "calibrate_tokens": 256}
    options = {**text, "bits": 2.5, "lm_head": "fairy2i", "jobs": 1}
    return partial(program, "calibrate", source, options=options)


@pytest.fixture(scope="module")
def calibrated(calibrate: Ask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calibrated") / "out"
    assert calibrate(out)["error"] == ""
    return out


@pytest.mark.parametrize("point", CALIBRATION)
def test_a_calibration_is_killed(point: str, calibrate: Ask, calibrated: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert calibrate(out, point)["killed"]
    assert out.exists() == (point == "the folder is placed")
    if out.exists():
        assert contents(out) == contents(calibrated)
    again = calibrate(out)
    assert again["error"] == ""
    noted = list(CALIBRATION).index("a calibrated tensor is written")  # the second; the first is noted
    assert (again["continued"] > 0) == (noted <= list(CALIBRATION).index(point) < len(CALIBRATION) - 1)
    assert contents(out) == contents(calibrated)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("point", ["the store is begun", "the model is to be tuned"])
def test_two_calibrations_at_once(point: str, calibrate: Ask, calibrated: Path, tmp_path: Path) -> None:
    found = calibrate(tmp_path / "out", point, meanwhile=True)
    assert found["meanwhile"]["error"] == (
        f"{tmp_path / '.out.partial'}: another export into this folder is running; wait, or choose another"
    )
    assert found["error"] == ""
    assert contents(tmp_path / "out") == contents(calibrated)


# ---- trainings


@pytest.fixture(scope="module")
def train(program: Ask, tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """``train(out, point)``: eight steps, a checkpoint after every third, an evaluation after every fourth."""
    folder = tmp_path_factory.mktemp("training")
    recipe = make_recipe(folder, keep_checkpoints=1).as_json()
    options = {name: value for name, value in recipe.items() if name not in ("source", "output")}
    return partial(program, "train", folder / "source", options=options)


@pytest.fixture(scope="module")
def trained(train: Ask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "out"
    assert train(out)["error"] == ""
    return out


def result(folder: Path) -> dict[str, Any]:
    """What has to be the same: not the card and the log, which tell times, but the log's curve."""
    recipe = {**json.loads((folder / "recipe.json").read_text()), "output": None}
    names = ("config.json", "model.safetensors", "tokenizer.json")
    return {**{name: (folder / name).read_bytes() for name in names}, "recipe.json": recipe, "curve": curve(folder)}


@pytest.mark.parametrize("point", TRAINING)
def test_a_training_is_killed(point: str, train: Ask, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert train(out, point)["killed"]
    assert (out / "config.json").exists() == (point in FINISHED)
    again = train(out)
    if point in FINISHED:
        assert again["error"] == f"{out}: holds a finished run; choose another folder, or --force to train anew in this one"
    else:
        assert again["error"] == ""
        with_a_checkpoint = list(TRAINING).index(point) >= list(TRAINING).index("the first checkpoint is sealed")
        assert (again["continued"] > 0) == with_a_checkpoint
    assert result(out) == result(trained)
    assert names(out) == names(trained)
    assert names(out / "data") == names(trained / "data")
    # killed between the last checkpoint and the removal of the one before, that one stays
    assert set(names(out / "checkpoints")) - set(names(trained / "checkpoints")) <= {"checkpoint-6"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("point", ["texts are tokenized", "a step after it is taken"])
def test_two_trainings_at_once(point: str, train: Ask, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = train(out, point, meanwhile=True)
    assert found["meanwhile"]["error"] == f"{out}: another process trains into this folder; wait, or choose another"
    assert found["error"] == ""
    assert result(out) == result(trained)
