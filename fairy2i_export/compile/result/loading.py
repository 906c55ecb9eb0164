"""The last look at an export before it gets its name: it is opened as hosts open it, so that none is finished that cannot be."""

from __future__ import annotations

import warnings
from pathlib import Path

from fairy2i_export.errors import ModelError
from fairy2i_export.output.contract.trial import try_model
from fairy2i_export.output.data_file import MODEL
from fairy2i_runtime.engine.graph.opening import checked_graph
from fairy2i_runtime.errors import Fairy2iRuntimeError, Fairy2iWarning
from fairy2i_runtime.folder import open_folder
from fairy2i_runtime.text.tokenizer import Tokenizer


def check_loads(folder: Path, source: str) -> None:
    """Open the configuration, tokenizer and graph of a finished folder with the runtime, and its model with ONNX Runtime.

    Args:
        folder: all that an export writes but the model card.
        source: what it was made of, for the message.

    Raises:
        ModelError: one of them is refused.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Fairy2iWarning)  # for whoever runs the model
            opened = open_folder(folder)
            Tokenizer.load(folder, opened.vocab_size)
            checked_graph(opened)
        problem = try_model(folder / MODEL).refusal
    except Fairy2iRuntimeError as error:
        problem = str(error).replace(f"{folder}/", "")
    if problem:
        raise ModelError(
            f"{source}: what was made of it does not load: {problem}; nothing was written. If the checkpoint runs in "
            "transformers, please report it"
        )
