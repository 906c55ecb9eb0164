"""What a model whose method is its own (iFairy) leaves to choose: its weights are quantized in every pass of the released code."""

from __future__ import annotations

from typing import Any

from fairy2i_export.codes.choices import COMPLEX_METHOD, COMPLEX_QUANTIZER
from fairy2i_export.decoder.architectures import has_complex_weights
from fairy2i_export.errors import CheckpointError, OptionError
from fairy2i_export.request.option import declared, words_of
from fairy2i_export.request.request import Request

_FIXED = ("stages", "quantizer", "row_multiplier")
# options that have no meaning for it -> why
_REFUSED = {
    "calibrate": "it was trained for its codes, which are its weights' own",
    "codes_from": "its codes come from the checkpoint in seconds, so export that again",
    "include": "all its complex layers were trained to be quantized",
    "exclude": "all its complex layers were trained to be quantized",
    "rope_scaling": "its code knows no scaling",
}


def fixed_method(request: Request, config: dict[str, Any]) -> dict[str, Any] | None:
    """How the model is quantized whatever is asked for, by option, lm_head and profile included as defaults; None: as asked.

    Args:
        request: what the caller asked for.
        config: the parsed config.json.

    Raises:
        OptionError: an option that contradicts it, or its quantizer asked for another model.
        CheckpointError: config.json says that it was trained with Fairy2i.
    """
    words = {name: words_of(name, found) for name, found in declared(Request, "checkpoint").items()}
    asked = request.asked
    if not has_complex_weights(config):
        if asked["quantizer"] == COMPLEX_QUANTIZER:
            raise OptionError(
                f"quantizer: {COMPLEX_QUANTIZER} is for checkpoints of complex weights (iFairy), and this is none; leave it out"
            )
        return None
    model = "an iFairy model"
    if config.get("fairy2i") is not None:
        raise CheckpointError(
            f"config.json: fairy2i: {model} has a method of its own and is not trained with Fairy2i; remove the entry"
        )
    for name in _FIXED:
        if asked[name] not in (None, COMPLEX_METHOD[name]):
            raise OptionError(
                f"{words[name]}: {model} is quantized as it was trained, with {COMPLEX_METHOD[name]}, got {asked[name]!r}; leave "
                "the option out"
            )
    for name, why in _REFUSED.items():
        if getattr(request, name):
            raise OptionError(f"{words[name]}: cannot be asked of {model}: {why}; leave the option out")
    if request.lm_head == "fairy2i":
        raise OptionError(
            f"lm_head: that of {model} was not trained to be quantized like its layers; use float, int8 or int4"
        )
    return COMPLEX_METHOD
