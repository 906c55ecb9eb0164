"""The last step of a conversion without training: which kernels hold the numerics contract on what was made.

Models that were trained for Fairy2i have activations that 8-bit tables can hold; those of plain models have outliers. Every host
reads the choice from genai_config.json: the default kernel where it holds, else exact mode, which multiplies as little.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from fairy2i_export.errors import OptionError
from fairy2i_export.output.contract.kernels import REFERENCE, Judgement, Verdict, judge_kernels, recorded
from fairy2i_export.output.contract.nodes import read_nodes
from fairy2i_export.output.metadata import kernels_entry
from fairy2i_export.output.progress import Observer
from fairy2i_export.source.text.sample_text import DEFAULT_TEXT, sample_ids
from fairy2i_runtime.errors import Fairy2iRuntimeError
from fairy2i_runtime.text.special_tokens import TOKENIZER_FILE
from fairy2i_runtime.text.tokenizer import Tokenizer

DEFAULT = "lut"
_TOKENS = 256  # of the text, at most, as verify has it


def text_to_run(folder: Path, context_length: int) -> npt.NDArray[np.int64]:
    """Token ids [length] of the text that is built in, for the finished files of a model."""
    ids = Tokenizer.load(folder).encode(DEFAULT_TEXT)
    return sample_ids(folder / TOKENIZER_FILE, ids, min(_TOKENS, context_length))[0]


def check_kernels(model_file: Path, ids: npt.NDArray[np.int64], observer: Observer) -> Judgement:
    """Run a text through every kernel, and record in the model's metadata which ones hold the contract.

    Args:
        model_file: the finished model.
        ids: token ids [length] of a text, at least 2.
        observer: hears about progress.

    Raises:
        OptionError: if the model cannot be run here.
    """
    nodes = read_nodes(model_file)
    observer.phase("checking kernels", len(nodes))
    try:
        found = judge_kernels(model_file, nodes, ids, done=lambda: observer.advance(1))
    except Fairy2iRuntimeError as error:
        raise OptionError(f"calibrate: the result is checked by running it, and that fails: {error}") from error
    model = onnx.load(model_file, load_external_data=False)
    entry = model.metadata_props.add()
    entry.key, entry.value = kernels_entry(recorded(found.holding))
    onnx.save(model, model_file)
    return found


def kernel_for_hosts(verdicts: dict[str, Verdict]) -> str | None:
    """The kernel that genai_config.json has to name, or None where the default one is right. Never one that multiplies."""
    if verdicts[DEFAULT].holds or not verdicts[REFERENCE].holds:
        return None
    return REFERENCE


def kernel_warning(verdicts: dict[str, Verdict]) -> str | None:
    """What a user has to know about the kernels of a model, or None."""
    if verdicts[DEFAULT].holds:
        return None
    problems = "; ".join(verdicts[DEFAULT].problems)
    others = [kernel for kernel, verdict in verdicts.items() if verdict.holds]
    if kernel_for_hosts(verdicts) is None:
        return f"the default kernel {DEFAULT} does not hold the numerics contract on this model, nor does exact mode: {problems}"
    return (
        f"the default kernel {DEFAULT} is too coarse for this model ({problems}); the folder says that {REFERENCE} is to be run, "
        f"which takes longer. Those that hold the contract: {', '.join(others)}; --kernel chooses another"
    )
