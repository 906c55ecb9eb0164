"""One model, four ways to run it, the same 200 tokens: the demo model end to end.

Exact mode of our runtime, onnxruntime without our library (the operator's function body), onnxruntime-genai with our library,
and torch with dense dequantized weights.
"""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import numpy as np
import pytest

import fairy2i_runtime
from conftest import ROOT
from fairy2i_export import export, quantize
from fairy2i_export.source.hub import open_source

MODEL = ROOT / "examples" / "models" / "stories260K-fairy2i-w2"
PROMPT = "Once upon a time"
TOKENS = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parity") / "stories"
    export(MODEL, out)
    return out


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[int]:
    """Tokens of our runtime in exact mode, prompt not included."""
    result = fairy2i_runtime.load(folder, kernel="exact").generate(PROMPT, max_new_tokens=TOKENS, ignore_eos=True)
    assert len(result.token_ids) == TOKENS
    return result.token_ids


def prompt_ids(folder: Path) -> list[int]:
    return fairy2i_runtime.load(folder).tokenizer.encode(PROMPT)


def test_every_kernel_and_thread_count_of_exact_mode(folder: Path, expected: list[int]) -> None:
    for threads in (1, 2, 4):
        model = fairy2i_runtime.load(folder, kernel="exact", isa="scalar", threads=threads)
        assert model.generate(PROMPT, max_new_tokens=TOKENS, ignore_eos=True).token_ids == expected


def test_default_mode_is_the_same_for_every_isa_and_thread_count(folder: Path) -> None:
    from fairy2i_runtime import core

    texts = set()
    for kernel in core.kernels():
        for threads in (1, 3):
            if kernel.family == "lut" and kernel.available:
                model = fairy2i_runtime.load(folder, isa=kernel.isa, threads=threads)
                texts.add(tuple(model.generate(PROMPT, max_new_tokens=TOKENS, ignore_eos=True).token_ids))
    assert len(texts) == 1


def test_onnxruntime_without_the_library(folder: Path, expected: list[int]) -> None:
    model = fairy2i_runtime.load(folder, use_library=False)
    assert model.generate(PROMPT, max_new_tokens=TOKENS, ignore_eos=True).token_ids == expected


@pytest.mark.parametrize("share_buffer", [True, False])
def test_onnxruntime_genai(folder: Path, expected: list[int], share_buffer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    monkeypatch.setenv("FAIRY2I_KERNEL", "exact")
    # genai looks the library up by its bare name, which finds it once this process has loaded it
    ctypes.CDLL(fairy2i_runtime.library_path())
    ids = prompt_ids(folder)
    unused = 511  # an end-of-text token that does not occur, so that generation goes on
    assert unused not in expected
    config = genai.Config(str(folder))
    config.overlay(json.dumps({"model": {"eos_token_id": unused}}))
    model = genai.Model(config)
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=len(ids) + TOKENS, past_present_share_buffer=share_buffer)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([ids], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    assert [int(t) for t in generator.get_sequence(0)][len(ids) :] == expected


def test_genai_tokenizer_agrees(folder: Path) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    ctypes.CDLL(fairy2i_runtime.library_path())
    model = fairy2i_runtime.load(folder)
    tokenizer = genai.Tokenizer(genai.Model(str(folder)))
    tokenizer.update_options(add_special_tokens="true")  # off by default in genai: it leaves <s> to chat templates
    for text in (PROMPT, 'Lily said, "Let\'s play!"', "café, naïve"):
        assert [int(t) for t in tokenizer.encode(text)] == model.tokenizer.encode(text), text


def test_torch_with_dense_dequantized_weights(folder: Path, expected: list[int]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    checkpoint = open_source(MODEL)
    settings = checkpoint.config["fairy2i"]
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == 36
    for name, module in linears:
        q = quantize(
            checkpoint.read(f"{name}.weight"),
            settings["stages"],
            settings["profile"],
            row_multiplier=settings["row_multiplier"],
        )
        module.weight.data = torch.from_numpy(q.dequantize("none"))
    model.generation_config.eos_token_id = None  # go on behind the end of the story
    ids = torch.tensor([prompt_ids(folder)])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS)
    assert out[0, ids.shape[1] :].tolist() == expected


def test_the_story_is_coherent(folder: Path) -> None:
    """The demo's text: sentences of known words, with a name that comes back."""
    text = fairy2i_runtime.load(folder).generate(PROMPT, max_new_tokens=120).text
    words = [word.strip(".,!?\"'").lower() for word in text.split()]
    known = set()
    for path in (ROOT / "examples" / "data" / "tinystories").glob("*.txt"):
        known |= {word.strip(".,!?\"'").lower() for word in path.read_text(encoding="utf-8").split()}
    assert len(words) > 40
    assert sum(word in known for word in words[:-1]) >= 0.97 * len(words[:-1])
    assert text.count(".") >= 3
