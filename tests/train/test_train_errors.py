"""Wrong inputs of ``fairy2i train``: one clear message, exit code 2, and the last good checkpoint stays."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import ml_dtypes
import numpy as np
import torch

from export_helpers import edit_json, tensors_of, write_safetensors
from fairy2i_export.commands import train as train_command
from fairy2i_export.commands.tools import main
from fairy2i_export.errors import OptionError
from fairy2i_export.train import train
from fairy2i_export.train.loop import checkpoint_guard
from fairy2i_export.train.loop.trainer import QATTrainer
from fairy2i_export.train.recipe import Recipe
from training_helpers import arguments_of, curve, make_recipe, make_source

Refuse = Callable[..., str]


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Run the command, expect exit code 2 and one message; returns it."""

    def run(recipe: Recipe, *more: str) -> str:
        assert main([*arguments_of(recipe), *more]) == 2
        message = capsys.readouterr().err
        assert "Traceback" not in message
        assert message.startswith("fairy2i")
        return message

    return run


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--method", "octal"], "--method: expected one of fairy2i, binary, ternary, float, got 'octal'"),
        (["--schedule", "sawtooth"], "--schedule: expected one of"),
        (["--batch", "0"], "--batch: expected a positive number"),
        (["--distill", "1.5"], "--distill: expected a number from 0 to 1"),
        (["--max-tokens", "1000"], "--steps and --max-tokens contradict each other"),
        (["--teacher-text", "1000"], "--teacher-text is for runs without --data"),
        (["--stages", "5"], "stages: expected a number from 1 to 4"),
        (["--row-multiplier", "max"], "row multiplier: expected one of"),
        (["--block-length", "200"], "--block-length: expected 2 to 96"),
        (["--eos", "nothing"], "--eos nothing: expected a token or a token id"),
        (["--exclude", "*.z_proj"], "no linear layer has a name like that"),
        (["--teacher", "x"], "--teacher needs --distill or --teacher-text"),
        (["--optimizer", "adam"], "No such option"),
        (["--betas", "1.5", "2"], "--betas: expected two numbers from 0 to below 1, got (1.5, 2.0)"),
        (["--seed", "-1"], "--seed: expected a number from 0 to"),
        (["--warmup", "nan"], "--warmup: expected a number that is not negative, got nan"),
        (["--weight-decay", "inf"], "--weight-decay: expected a number that is not negative, got inf"),
        (["--separator", ""], "--separator: expected at least one character"),
        (["--batch", "999999999999999"], "--batch: expected at most 1,048,576, got 999999999999999"),
        (["--steps", "99999999999999999999"], "--steps: expected at most 1,000,000,000,000"),
        (["--threads", "100000"], "--threads: expected at most 1,024, got 100000"),
        (["--quantizer", "best"], "quantizer: expected one of greedy, joint"),
        (["--teacher", "nowhere", "--distill", "0.5"], "nowhere: no such file or directory"),
        (["--data", "hf:a:b:c:d", "--streaming"], "--data hf:a:b:c:d: expected hf:OWNER/NAME"),
    ],
)
def test_options(refuse: Refuse, tmp_path: Path, more: list[str], expected: str) -> None:
    assert expected in refuse(make_recipe(tmp_path), *more)


def test_mistakes_are_told_before_torch_is_loaded(tmp_path: Path) -> None:
    """What can be known from options, small files and folders costs no seconds of imports."""
    recipe = make_recipe(tmp_path)
    cases: list[tuple[Recipe, list[str]]] = [
        (replace(recipe, data=("nowhere.txt",)), []),
        (replace(recipe, eval_data=("nowhere.txt",)), []),
        (replace(recipe, source=str(tmp_path / "nowhere")), []),
        (replace(recipe, source=str(tmp_path / "model.onnx")), []),
        (replace(recipe, output=Path(recipe.data[0]) / "out"), []),
        (recipe, ["--save-dtype", "int3"]),
        (recipe, ["--stages", "7"]),
        (recipe, ["--eos", "99999"]),
        (recipe, ["--block-length", "200"]),
        (recipe, ["--method", "binary", "--learned-scales"]),
    ]
    script = (
        "import sys, json\nfrom fairy2i_export.commands.tools import main\n"
        "codes = [main(arguments) for arguments in json.loads(sys.argv[1])]\n"
        "print(set(codes), [name for name in ('torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    given = json.dumps([[*arguments_of(case), *more] for case, more in cases])
    ran = subprocess.run([sys.executable, "-c", script, given], capture_output=True, text=True, timeout=120)
    assert ran.stdout == "{2} []\n", ran.stderr
    assert not recipe.output.exists()


GOOD: dict[str, Any] = {"source": "a", "output": "b", "data": "x.txt"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": None}, "source: expected the name of a folder, got None"),
        ({"output": None}, "output: expected the name of a folder, got None"),
        ({"output": b"x"}, "output: expected the name of a folder, got b'x'"),
        ({"data": None}, "--data: expected a list, got None"),
        ({"data": [None]}, "--data: expected a text, got None"),
        ({"data": 5}, "--data: expected a text, got 5"),
        ({"eval_data": ["x", 3.5]}, "--eval-data: expected a text, got 3.5"),
        ({"steps": 2.5}, "--steps: expected a whole number, got 2.5"),
        ({"steps": True}, "--steps: expected a whole number, got True"),
        ({"max_tokens": "8"}, "--max-tokens: expected a whole number, got '8'"),
        ({"clip": None}, "--clip: expected a number, got None"),
        ({"learning_rate": "fast"}, "--lr: expected a number, got 'fast'"),
        ({"betas": 0.9}, "--betas: expected two numbers"),
        ({"betas": ("a", "b")}, "--betas: expected two numbers"),
        ({"bf16": "yes"}, "--bf16: expected True or False, got 'yes'"),
        ({"method": ["fairy2i"]}, "--method: expected a text"),
        ({"stages": "2"}, "--stages: expected a whole number, got '2'"),
        ({"include": [5]}, "--include: expected a text, got 5"),
    ],
)
def test_recipes_of_python_code(change: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as caught:
        train(Recipe(**{**GOOD, **change}))
    assert words in str(caught.value)


def test_recipes_take_what_python_code_gives() -> None:
    plain = Recipe("a", Path("b"), data=("x", "y"), steps=4, betas=(0.5, 0.25), teacher="t", distill=1.0)
    given: Any = {"data": [Path("x"), "y"], "steps": np.int64(4), "betas": [0.5, np.float32(0.25)], "distill": 1}
    same = Recipe(Path("a"), "b", teacher=Path("t"), **given)  # type: ignore[arg-type]
    assert same == plain
    assert json.dumps(same.as_json()) == json.dumps({**plain.as_json(), "distill": 1})
    same.check()
    assert Recipe(**{**GOOD, "data": "one.txt"}).data == ("one.txt",)
    with pytest.raises(OptionError, match="recipe: expected a Recipe, got 'x'"):
        train("x")  # type: ignore[arg-type]


def test_texts(refuse: Refuse, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, eval_data=())
    text = tmp_path / "text.txt"
    given = replace(recipe, data=(str(text),))
    assert "no such file" in refuse(given)
    text.write_text("")
    assert "--data" in refuse(given)
    assert "text.txt: is empty" in refuse(given)
    assert f"--eval-data {text}: is empty" in refuse(replace(recipe, eval_data=(str(text),)))
    text.write_text("  \n ")
    assert "no text" in refuse(given)
    text.write_text("w3 w4 w5")
    assert "only 4 tokens found, and a block has 32" in refuse(given)
    text.write_bytes(b"w3 \xff\xfe w4")
    assert "text.txt: expected UTF-8 text" in refuse(given)
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"body": "w3 w4"}\n')
    given = replace(recipe, data=(str(lines),))
    assert "expected a column 'text' of text, found body (str); choose it with --field" in refuse(given)
    lines.write_text('{"text": "w3 w4"\n')
    assert "lines.jsonl: cannot be" in refuse(given)
    assert "is a folder" in refuse(replace(recipe, data=(str(tmp_path),)))


def test_a_separator_that_does_not_occur(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe(tmp_path, steps=1, quiet=False)
    Path(recipe.eval_data[0]).write_text("w3 w4 w5 w6 " * 50)
    train(recipe)
    warnings = [line for line in capsys.readouterr().out.splitlines() if "does not occur" in line]
    assert warnings == [
        f"warning: --separator '<|end|>' does not occur in {recipe.eval_data[0]}, which is taken for one document"
    ]


def test_a_tokenizer_with_more_ids_than_the_embedding(refuse: Refuse, tmp_path: Path) -> None:
    source = make_source(tmp_path / "small", vocab_size=150)
    message = refuse(make_recipe(tmp_path, source=str(source)))
    assert "token ids up to 199" in message
    assert "has 150" in message


def test_a_teacher_with_other_tokens(refuse: Refuse, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    larger = make_source(tmp_path / "larger", vocab_size=240)
    message = refuse(recipe, "--distill", "0.5", "--teacher", str(larger))
    assert "vocabulary of 240, the model 210" in message
    other = make_source(tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"w7":7', '"x7":7').replace('"w7": 7', '"x7": 7'))
    assert "its tokenizer is another one" in refuse(recipe, "--distill", "0.5", "--teacher", str(other))


def test_odd_dimensions(refuse: Refuse, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_source(tmp_path / "odd", intermediate_size=49, vocab_size=211)
    recipe = make_recipe(tmp_path, source=str(source), steps=1, eval_data=())
    arguments = [argument for argument in arguments_of(recipe) if argument != "--quiet"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "left model.layers.0.mlp.down_proj: odd dimension (32 x 49)" in printed
    log = json.loads((recipe.output / "training_log.json").read_text())
    assert set(log["left_float"]) == {"lm_head", *(f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down"))}
    again = replace(recipe, output=tmp_path / "again")
    assert "no linear layer would be quantized" in refuse(again, "--include", "*.mlp.*")


def test_incomplete_and_dequantized_sources(refuse: Refuse, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path)
    source = Path(recipe.source)
    edit_json(source / "config.json", fairy2i={"latent": False})
    assert "dequantized already" in refuse(recipe)
    edit_json(source / "config.json", fairy2i=None, num_hidden_layers=2)
    assert "weights are missing" in refuse(recipe)
    assert "no such file or directory" in refuse(replace(recipe, source=str(tmp_path / "nowhere")))


def test_a_loss_that_is_not_finite(refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(tmp_path)
    compute = QATTrainer.compute_loss

    def broken(self: QATTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = compute(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 4 else loss

    with monkeypatch.context() as patch:
        patch.setattr(QATTrainer, "compute_loss", broken)
        message = refuse(recipe)
    assert "step 5: the loss is nan" in message
    assert "checkpoint-3" in message
    good = checkpoint_guard.good_checkpoints(recipe.output / "checkpoints")
    assert [path.name for path in good] == ["checkpoint-3"]
    assert not (recipe.output / "config.json").exists()


def test_infinite_weights_of_the_source(refuse: Refuse, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, method="float")
    source = Path(recipe.source)
    config = json.loads((source / "config.json").read_text())
    tensors = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors_of(config)}
    tensors["model.embed_tokens.weight"][:] = np.inf
    write_safetensors(source / "model.safetensors", tensors)
    assert "step 1: the loss is nan" in refuse(recipe, "--method", "float")


def test_a_full_disk(refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_recipe(tmp_path, output=tmp_path / "whole")
    train(whole)
    recipe = replace(whole, output=tmp_path / "out")
    save = torch.save

    def full(value: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if "checkpoint-6" in str(path) and "optimizer" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(value, path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        message = refuse(recipe)
    assert "the checkpoint of step 6 cannot be written: No space left on device" in message
    assert "the last good checkpoint is" in message
    folder = recipe.output / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["checkpoint-3"]  # nothing half-written is left, under any name
    assert main(arguments_of(recipe)) == 0
    assert curve(recipe.output) == curve(whole.output)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits there")
@pytest.mark.parametrize(
    ("limit", "save_every", "expected"),
    [
        (60_000, 3, "the checkpoint of step 6 cannot be written"),
        (60_000, 100, "the checkpoint of step 8 cannot be written"),  # of the end
        (200, 3, "training stopped: "),  # TensorBoard's log
    ],
)
def test_files_that_the_system_refuses(
    refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, save_every: int, expected: str
) -> None:
    import resource

    recipe = make_recipe(tmp_path, save_every=save_every, eval_data=())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    step = QATTrainer.training_step

    def limited(self: QATTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(QATTrainer, "training_step", limited)
        try:
            message = refuse(recipe)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert expected in message
    assert "File too large" in message
    assert "run the same command again" in message
    folder = recipe.output / "checkpoints"
    kept = [path.name for path in folder.iterdir()] if recipe.output.exists() else []  # without a checkpoint nothing stays
    assert kept == (["checkpoint-3"] if save_every == 3 else [])
    assert ("checkpoint-3" if kept else "there is no checkpoint yet") in message
    assert main(arguments_of(recipe)) == 0
    whole = replace(recipe, output=tmp_path / "whole")
    train(whole)
    assert curve(recipe.output) == curve(whole.output)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits there")
def test_no_room_for_the_texts(refuse: Refuse, tmp_path: Path) -> None:
    import resource

    recipe = make_recipe(tmp_path, eval_data=())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_500, hard))  # recipe.json is smaller, the tokens are not
    try:
        message = refuse(recipe)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "training stopped: File too large" in message
    assert main(arguments_of(recipe)) == 0


def test_no_room_is_said_before_training(refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10_000))
    assert "the disk has 10 kB free" in refuse(make_recipe(tmp_path)).replace("10.0 kB", "10 kB")


def test_damaged_checkpoints_do_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = make_recipe(tmp_path, eval_data=())
    train(recipe)
    expected = curve(recipe.output)
    for name in ("config.json", "training_log.json"):
        (recipe.output / name).unlink()
    damaged = recipe.output / "checkpoints" / "checkpoint-8" / "optimizer.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert main([argument for argument in arguments_of(recipe) if argument != "--quiet"]) == 0
    printed = capsys.readouterr().out.replace("\n", " ")
    assert "checkpoint-8 is incomplete and is not used" in printed
    assert "continuing after step 6" in printed
    assert curve(recipe.output) == expected


def test_output_folders(refuse: Refuse, tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, eval_data=(), steps=1)
    recipe.output.mkdir()
    (recipe.output / "thesis.tex").write_text("years of work")
    assert "is no training folder" in refuse(recipe)
    assert "is no training folder" in refuse(recipe, "--force")
    assert (recipe.output / "thesis.tex").exists()
    assert "holds the source checkpoint" in refuse(replace(recipe, output=Path(recipe.source)), "--force")
    ready = replace(recipe, output=tmp_path / "ready")
    train(ready)
    assert "holds a finished run" in refuse(ready)
    assert main([*arguments_of(ready), "--force"]) == 0
    (ready.output / "training_log.json").unlink()
    message = refuse(replace(ready, learning_rate=1e-3))
    assert "--lr: 0.01 there, 0.001 here" in message
    assert "sequences per step, all processes: 4 there, 8 here" in refuse(replace(ready, accumulate=2))
    Path(ready.data[0]).write_text("w3 " * 500)
    assert "a text has changed since" in refuse(ready)


def test_without_the_extra(refuse: Refuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_command, "_NEEDED", ("torch", "no_such_package"))
    assert "train needs no_such_package: pip install '.[train]' in a checkout" in refuse(make_recipe(tmp_path))


def test_two_runs_in_one_folder(refuse: Refuse, tmp_path: Path) -> None:
    from fairy2i_export.train.result.folder import claimed

    recipe = make_recipe(tmp_path)
    with claimed(recipe, 4, Path(recipe.source)):
        assert "another process trains into this folder" in refuse(recipe)
