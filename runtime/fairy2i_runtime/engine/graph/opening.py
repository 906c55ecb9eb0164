"""Read the model.onnx of a folder for onnxruntime, which gets these very bytes once they have been looked at."""

from __future__ import annotations

from fairy2i_runtime.engine.graph.call import DataFileError, GraphError
from fairy2i_runtime.engine.graph.check import check_graph
from fairy2i_runtime.errors import ModelFolderError, printable
from fairy2i_runtime.folder import ModelFolder
from fairy2i_runtime.regular_file import read_regular

MODEL_BYTES = 1 << 26  # of a model.onnx, whose large weights lie elsewhere; one of 7 billion parameters has 1 MB


def checked_graph(folder: ModelFolder) -> bytes | None:
    """The contents of a folder's model, which is a decoder as fairy2i-export writes them; None: to be opened by its name.

    That is so where files of the folder are links, as in caches of the Hugging Face hub: for a model that it does not open
    itself, onnxruntime follows no links to weights.

    Raises:
        ModelFolderError: if it is none, or cannot be read.
    """
    path = folder.model_file
    try:
        data = read_regular(path, MODEL_BYTES, "a model")
        check_graph(data, folder.path, folder.context_length)
    except OSError as error:
        raise ModelFolderError(f"cannot read {path}: {error.strerror}; export the model again") from error
    except DataFileError as error:
        raise ModelFolderError(printable(str(error))) from error
    except GraphError as error:
        raise ModelFolderError(
            f"{path}: not a decoder as fairy2i-export writes it, and so not given to onnxruntime, which dies of some graphs: "
            f"{printable(str(error))}; export the model again, or, if you trust where it is from, use trust_graph=True "
            "(--trust-graph)"
        ) from error
    weights = path.with_name(f"{path.name}.data")
    return None if path.is_symlink() or weights.is_symlink() else data
