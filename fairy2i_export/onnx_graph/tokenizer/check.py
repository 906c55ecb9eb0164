"""The graphs against the tokenizers library, on texts of many kinds; what differs is refused before anything is written."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fairy2i_export.errors import TokenizerError, install_hint
from fairy2i_export.onnx_graph.tokenizer.description import Description, read_tokenizer
from fairy2i_export.onnx_graph.tokenizer.detokenizer import token_bytes

SAMPLE = (
    "",
    " ",
    "Once upon a time, there was a little girl.",
    " leading", "  two leading", "    four leading", "trailing ", "trailing   ", "a  b   c    d",
    "tab\there", "\t\ttabs\t", "line\nbreak", "\n\npara\r\ngraphs\n\n\n", " \n \t x",
    "café naïve Ünïcödé señor", "cafe\u0301 decomposed", "İstanbul ſ ß Ǆ", "ﬁ ligature Å Å ½²①Ⅷ",
    "日本語のテキスト", "中文字符测试。", "한국어 문장", "Привет, мир", "Γειά σου", "مرحبا بالعالم", "שלום עולם", "नमस्ते", "ภาษาไทย",
    "😀👍🏽 emoji 👨‍👩‍👧 🇪🇺", "𝒳 math ∀x∈ℝ", "\u00a0no-break\u3000wide\u2028line\u200bzero", "\ufeffmark",
    "1234567890 3.14 1,000 v2", "don't I'll we've WE'RE it'S ’s", "!!!???... --- ===", "http://a.b/c?d=e&f#g",
    "def f(x):\n    return x + 1\n\tpass\n", "_under_score camelCase SCREAMING", "▁ meta▁mark",
    "x" * 300, "日本語のテキスト中文字符测试" * 15, "тестирование" * 20, " " * 40 + "x", "a" * 90 + "tion" * 30, "=-" * 100,
    "Once upon a time there was a little girl. " * 10,
)  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")  # docs/tokenizer-onnx.md: what differs
_PAIRS = 300  # texts put together of tokens


def sample_texts(description: Description) -> list[str]:
    """:data:`SAMPLE`, texts with the added tokens in them, and random neighbours out of the vocabulary."""
    texts = list(SAMPLE)
    for token in list(description.added.values())[:20]:
        texts += [token, f"a{token}b", f" {token} b ", f"{token}{token}x\n{token}", f"a {token[:-1]}", f"a{token[:2]}b c"]
    dice = random.Random(0)
    ids = sorted(description.vocabulary)
    for _ in range(_PAIRS):
        text = b"".join(token_bytes(description, dice.choice(ids)) for _ in range(4)).decode(errors="ignore")
        texts.append(_CONTROL.sub("", text))
    return texts


def check_graphs(path: Path, description: Description, encode: onnx.ModelProto, decode: onnx.ModelProto) -> int:
    """Compare both graphs with the tokenizers library on all of :func:`sample_texts`; returns the number of texts.

    Raises:
        TokenizerError: something differs, with the first difference; or the operators cannot be run.
    """
    tokenizer = read_tokenizer(path).backend
    encoder, decoder = _session(path, encode), _session(path, decode)
    texts = sample_texts(description)
    for text in texts:
        for special in (True, False):
            wanted = tokenizer.encode(text, add_special_tokens=special).ids
            found = _run(path, encoder, {"text": np.array([text], object), "add_special_tokens": np.array([special])})
            if found[0][0].tolist() != wanted:
                raise _differs(path, "tokens", text, found[0][0].tolist(), wanted)
        for skip in (True, False):
            ids = np.array([wanted], np.int64)
            spelled = _run(path, decoder, {"ids": ids, "skip_special_tokens": np.array([skip])})[0][0]
            expected = tokenizer.decode(wanted, skip_special_tokens=skip)
            if spelled != expected:
                raise _differs(path, "decoded text", text, spelled, expected)
    return len(texts)


def _session(path: Path, model: onnx.ModelProto) -> Any:
    """Open a graph with the operators of onnxruntime-extensions."""
    try:
        from onnxruntime_extensions import get_library_path
    except ImportError as error:
        raise TokenizerError(
            "--tokenizer-onnx checks its graphs with the package onnxruntime-extensions, which is not installed: "
            f"{install_hint('tokenizer-onnx')}"
        ) from error
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(get_library_path())
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exception classes have no common base
        raise TokenizerError(f"{path}: cannot become an ONNX graph: onnxruntime-extensions refuses it: {error}") from error


def _run(path: Path, session: Any, feeds: dict[str, Any]) -> Any:
    try:
        return session.run(None, feeds)
    except Exception as error:  # as above
        raise TokenizerError(
            f"{path}: cannot become an ONNX graph: onnxruntime-extensions fails on {feeds}: {error}"
        ) from error


def _differs(path: Path, what: str, text: str, found: Any, wanted: Any) -> TokenizerError:
    place = next(
        (n for n, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]), min(len(found), len(wanted))
    )
    around = slice(max(0, place - 2), place + 6)
    return TokenizerError(
        f"{path}: cannot become an ONNX graph: the {what} of {text[:60]!r} would be {found[around]!r} instead of "
        f"{wanted[around]!r} from position {around.start} on; leave --tokenizer-onnx out and ship tokenizer.json"
    )
