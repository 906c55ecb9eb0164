"""Tokenizer classes for which transformers 5 builds a pipeline of its own and passes over that of tokenizer.json.

Everything here, onnxruntime-genai and earlier versions of transformers take tokenizer.json as it is. Where the two differ, a text
can become other tokens in the transformers of today: after special tokens and at runs of spaces, for instance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Pipeline = tuple[Any, Any]  # normalizer and pre-tokenizer, reduced to what matters


def class_warning(config: Mapping[str, Any], data: Mapping[str, Any]) -> str | None:
    """What a user has to know about a tokenizer's class, or None.

    Args:
        config: tokenizer_config.json.
        data: tokenizer.json.
    """
    name = config.get("tokenizer_class")
    if not isinstance(name, str) or (build := _CLASSES.get(name.removesuffix("Fast"))) is None:
        return None
    if build(config) == _pipeline(data):
        return None
    return (
        f"tokenizer_class {name}: transformers 5 builds that class's own pipeline, which is not that of tokenizer.json; here and "
        "in onnxruntime-genai tokenizer.json counts, so a text may become other tokens than there (after special tokens and at "
        "spaces, mostly). If the model was trained with the class's tokens, save the tokenizer again: "
        "AutoTokenizer.from_pretrained(SOURCE).save_pretrained(NEW)"
    )


def _llama(config: Mapping[str, Any]) -> Pipeline:
    prefix, legacy = config.get("add_prefix_space"), bool(config.get("legacy", False))
    scheme = "never" if prefix is False else "always" if legacy else "first"
    return None, ("Metaspace", scheme, False)


def _qwen2(config: Mapping[str, Any]) -> Pipeline:
    return "NFC", ("Sequence", "Split", ("ByteLevel", bool(config.get("add_prefix_space")), False))


def _gpt2(config: Mapping[str, Any]) -> Pipeline:
    return None, ("ByteLevel", bool(config.get("add_prefix_space")), True)


_CLASSES: dict[str, Callable[[Mapping[str, Any]], Pipeline]] = {
    "LlamaTokenizer": _llama,
    "Qwen2Tokenizer": _qwen2,
    "GPT2Tokenizer": _gpt2,
}


def _pipeline(data: Mapping[str, Any]) -> Pipeline:
    normalizer = data.get("normalizer")
    return (normalizer.get("type") if isinstance(normalizer, Mapping) else None), _step(data.get("pre_tokenizer"))


def _step(step: Any) -> Any:
    if not isinstance(step, Mapping):
        return None
    kind = step.get("type")
    if kind == "Metaspace":
        return kind, step.get("prepend_scheme", "always"), bool(step.get("split", True))
    if kind == "ByteLevel":
        return kind, bool(step.get("add_prefix_space", True)), bool(step.get("use_regex", True))
    if kind == "Sequence":
        return (kind, *map(_step, step.get("pretokenizers", [])))
    return kind
