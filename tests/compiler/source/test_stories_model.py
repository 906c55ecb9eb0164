"""The embedded stories260K model: its converter, its tokenizer, the committed checkpoint and the script that trained it."""

from __future__ import annotations

import json
import random
import struct
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from conftest import ROOT
from fairy2i_export.codes.quantizer import quantize

EXAMPLES = ROOT / "examples"
CHECKPOINT = EXAMPLES / "models" / "stories260K-fairy2i-w2"
SAMPLE = EXAMPLES / "data" / "tinystories" / "tinystories_sample.txt"
EXCERPT = EXAMPLES / "data" / "tinystories" / "tinystories_train_197k.txt"


@pytest.fixture(scope="module", autouse=True)
def _examples_importable() -> Any:
    sys.path.insert(0, str(EXAMPLES / "stories"))
    yield
    sys.path.remove(str(EXAMPLES / "stories"))


@pytest.fixture(scope="module")
def float_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The float model, converted."""
    from stories260k import convert

    directory = tmp_path_factory.mktemp("stories260k")
    convert(directory)
    return directory


# -------------------------------------------------------------------------------------------------------------- tokenizer


class ReferenceTokenizer:
    """Another implementation of the llama2.c tokenizer, from its description: greedy merging of the best-scoring neighbours."""

    def __init__(self, path: Path) -> None:
        raw, offset = path.read_bytes(), 4
        self.pieces: list[bytes] = []
        self.scores: list[float] = []
        while offset < len(raw):
            score, length = struct.unpack("<fi", raw[offset : offset + 8])
            self.pieces.append(raw[offset + 8 : offset + 8 + length])
            self.scores.append(score)
            offset += 8 + length
        self.ids = {piece: token for token, piece in enumerate(self.pieces)}

    def encode(self, text: str) -> list[int]:
        """Token ids with BOS in front."""
        tokens: list[int] = []
        for character in " " + text if text else "":
            raw = character.encode()
            tokens += [self.ids[raw]] if raw in self.ids else [byte + 3 for byte in raw]
        while True:
            joined = [self.ids.get(self.pieces[a] + self.pieces[b], -1) for a, b in pairwise(tokens)]
            candidates = [(-self.scores[token], at) for at, token in enumerate(joined) if token >= 0]
            if not candidates:
                return [1, *tokens]
            at = min(candidates)[1]
            tokens[at : at + 2] = [joined[at]]


def sample_texts() -> list[str]:
    """Real text, hand-picked odd strings and random concatenations of vocabulary entries."""
    excerpt = EXCERPT.read_text(encoding="utf-8")
    texts = SAMPLE.read_text(encoding="utf-8").split("<|endoftext|>") + [excerpt[i : i + 997] for i in range(0, 60_000, 997)]
    texts += ["", " ", "  ", "a", " a", "a ", "\n", "\n\n \n", "\r\n\t", "\x00\x7f", "\ufeffx", "x\u0300", "aaaaaaaaaa"]
    texts += ["é ñ", "你好 мир", "🙂👨‍👩‍👧", "“quoted” — it’s…", "ééé\u00a0$5 + 7%", "<0x41>", "<0x0A>", "!!!! ....  ,,"]
    texts += ["THE", "themomomomthe", " Lily Lily"]
    pieces = [piece.decode() for piece in ReferenceTokenizer(EXAMPLES / "data" / "stories260K" / "tok512.bin").pieces[259:]]
    rng = random.Random(0)
    texts += ["".join(rng.choices([*pieces, "\n", "🙂", "Ж"], k=rng.randint(1, 30))) for _ in range(400)]
    return texts


def test_tokenizer_equals_llama2c_and_round_trips(float_model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(float_model / "tokenizer.json"))
    reference = ReferenceTokenizer(EXAMPLES / "data" / "stories260K" / "tok512.bin")
    for text in sample_texts():
        ids = tokenizer.encode(text).ids
        assert ids == reference.encode(text), repr(text)
        assert tokenizer.decode(ids) == text


def test_checkpoint_and_float_model_share_the_tokenizer(float_model: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        assert (CHECKPOINT / name).read_bytes() == (float_model / name).read_bytes()


def test_stories_end_at_bos(float_model: Path) -> None:
    """The model was trained on stories joined by BOS and never saw EOS: generation has to stop at either."""
    for directory in (CHECKPOINT, float_model):
        for name in ("config.json", "generation_config.json"):
            assert json.loads((directory / name).read_text())["eos_token_id"] == [1, 2]


@pytest.mark.parametrize("damage", ["truncated", "longer", "untied"])
def test_damaged_llama2c_checkpoint_is_refused(tmp_path: Path, damage: str) -> None:
    from stories260k import read_checkpoint

    raw = (EXAMPLES / "data" / "stories260K" / "stories260K.bin").read_bytes()
    changed = {
        "truncated": raw[:500_000],
        "longer": raw + bytes(4),
        "untied": raw[:20] + struct.pack("<i", -512) + raw[24:],
    }[damage]
    path = tmp_path / "model.bin"
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=r"model\.bin"):
        read_checkpoint(path)


# -------------------------------------------------------------------------------------------------------------- checkpoint


def test_checkpoint_holds_valid_latent_weights() -> None:
    config = json.loads((CHECKPOINT / "config.json").read_text())
    recipe = config["fairy2i"]
    assert recipe["stages"] == 2
    assert recipe["profile"] == "bf16-reference"
    assert recipe["lm_head"] == "fairy2i"
    assert recipe["latent"] is True
    assert config["tie_word_embeddings"] is False
    hidden, kv = config["hidden_size"], config["head_dim"] * config["num_key_value_heads"]
    shapes = {
        "q_proj": [hidden, hidden],
        "k_proj": [kv, hidden],
        "v_proj": [kv, hidden],
        "o_proj": [hidden, hidden],
        "gate_proj": [config["intermediate_size"], hidden],
        "up_proj": [config["intermediate_size"], hidden],
        "down_proj": [hidden, config["intermediate_size"]],
        "lm_head": [config["vocab_size"], hidden],
    }
    seen = 0
    with safe_open(CHECKPOINT / "model.safetensors", framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118  (a safetensors file is not a dict)
            weight = file.get_tensor(name)
            assert weight.dtype == ml_dtypes.bfloat16, name
            kind = name.split(".")[-2]
            if kind in shapes:
                assert list(weight.shape) == shapes[kind]
                layer = quantize(weight, recipe["stages"], recipe["profile"], row_multiplier=recipe["row_multiplier"])
                latent = weight.astype(np.float32)
                assert np.square(layer.dequantize("none") - latent).mean() < 0.5 * np.square(latent).mean(), name
                seen += 1
    assert seen == config["num_hidden_layers"] * 7 + 1


def test_losses_in_the_log_are_reproduced() -> None:
    """Float and quantized loss on the held-out stories, recomputed from the committed files."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import train_stories
    from safetensors.torch import load_file

    log = json.loads((CHECKPOINT / "training_log.json").read_text())
    model, tokenizer = train_stories.load_float_model()
    assert train_stories.evaluate(model, tokenizer) == pytest.approx(log["eval_loss_float"], abs=1e-3)
    assert log["eval_loss_float"] == pytest.approx(1.266, abs=1e-3)
    model.load_state_dict(load_file(CHECKPOINT / "model.safetensors"))
    loss = train_stories.evaluate_saved(model, tokenizer, train_stories.Options(**log["options"]))
    assert loss == pytest.approx(log["eval_loss_trained"], abs=0.01)
    assert loss < log["eval_loss_float"] + 0.4  # docs/training-stories.md


# ---------------------------------------------------------------------------------------------------------------- training


def test_gradient_goes_straight_through_the_quantizer() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import train_stories

    options = train_stories.Options(row_multiplier="rms")
    model, _ = train_stories.load_float_model()
    weights = train_stories.quantization_aware_weights(model, options)
    assert len(train_stories.linear_weights(model)) == 36
    name = "model.layers.0.mlp.up_proj.weight"
    latent = model.get_parameter(name)
    expected = quantize(latent.detach().numpy(), 2, row_multiplier="rms").dequantize("none")
    np.testing.assert_allclose(weights[name].detach().numpy(), expected, rtol=0, atol=1e-6)
    direction = torch.randn(latent.shape)
    (weights[name] * direction).sum().backward()
    assert torch.equal(latent.grad, direction)
    assert weights["model.embed_tokens.weight"] is model.get_parameter("model.embed_tokens.weight")


def test_two_training_steps_write_a_complete_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import train_stories

    out, stories = tmp_path / "model", tmp_path / "stories.npy"
    out.mkdir()
    (out / "stale.txt").write_text("from an earlier run")
    threads = torch.get_num_threads()
    options = "--steps 2 --warmup 1 --batch 2 --stories 8 --length 16 --stages 1 --row-multiplier rms --learning-rate 1e-3"
    arguments = ["train_stories.py", "--out", str(out), "--stories-file", str(stories), *options.split()]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(train_stories, "TRAIN_TEXT", SAMPLE)
    try:
        train_stories.main()
    finally:
        torch.set_num_threads(threads)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "stories.npy"]
    assert {path.name for path in out.iterdir()} == {path.name for path in CHECKPOINT.iterdir()}
    assert json.loads((out / "config.json").read_text())["fairy2i"] == {
        "stages": 1,
        "profile": "bf16-reference",
        "row_multiplier": "rms",
        "lm_head": "fairy2i",
        "latent": True,
    }
    log = json.loads((out / "training_log.json").read_text())
    assert [entry["step"] for entry in log["steps"]] == [2]
    assert log["eval_loss_trained"] != log["eval_loss_untrained"]
    saved = np.load(stories)
    assert saved.shape == (8, 16)
    assert (saved[:, 0] == 1).all()
