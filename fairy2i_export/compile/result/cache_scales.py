"""The scales of an int8 key-value cache, measured by running the exported model on a text.

onnxruntime rounds keys and values to int8 with one fixed scale per channel; what lies beyond 127 steps is cut off. So the
model reads a text with a float32 cache first, and the largest magnitude of every channel becomes 127 steps, with a margin.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fairy2i_export.compile.options import ExportOptions
from fairy2i_export.decoder.description import Block, Decoder
from fairy2i_export.errors import OptionError
from fairy2i_export.onnx_graph.operator import DOMAIN
from fairy2i_export.source.checkpoint import Checkpoint
from fairy2i_export.source.text.sample_text import DEFAULT_TEXT
from fairy2i_export.source.text.text_files import read_text, unknown_warnings
from fairy2i_export.source.text.tokenizer import open_tokenizer

F32 = npt.NDArray[np.float32]
_TOKENS = 512  # of the text, at most
_FEWEST = 32  # fewer say too little about what else goes through the model
_MARGIN = 1.1  # other texts have larger values
_LEVELS = 127
_K_SCALE, _V_SCALE = 12, 13  # inputs of GroupQueryAttention


def calibration_text(
    checkpoint: Checkpoint, options: ExportOptions, path: str | Path | None
) -> tuple[npt.NDArray[np.int64] | None, list[str]]:
    """Token ids [1, length] of a text file, or of the text that is built in, and warnings about it.

    None where no cache is to be calibrated.

    Raises:
        OptionError: if the file cannot be read as text, is too short, or is given for nothing.
    """
    if options.kv_cache != "int8":
        if path is not None:
            raise OptionError("cache calibration: only an int8 cache is calibrated; add --kv-cache int8")
        return None, []
    fewest = min(_FEWEST, options.context_length)
    needed = f"at least {fewest} tokens of the kind of text that the model is for; up to {_TOKENS} are used"
    where = "cache calibration: the English text that is built in" if path is None else f"cache calibration {path}"
    text = DEFAULT_TEXT
    if path is not None:
        text = read_text(path, "cache calibration", f"a UTF-8 text file with {needed}")
    tokenizer = open_tokenizer(checkpoint.directory).backend
    found = len(tokenizer.encode(text, add_special_tokens=False).ids)
    if found < fewest:
        instead = "; give one with --cache-calibration FILE" if path is None else ""
        raise OptionError(f"{where}: has {found} tokens, expected {needed}{instead}")
    ids = tokenizer.encode(text).ids[: min(_TOKENS, options.context_length)]
    return np.array([ids], np.int64), unknown_warnings(tokenizer, ids, where)


def calibrate_cache(model_file: Path, decoder: Decoder, ids: npt.NDArray[np.int64]) -> None:
    """Write the scales of all layers into a model with an int8 cache.

    Args:
        model_file: the model, as built; only the initializers of its scales change.
        decoder: its description.
        ids: a text [1, length].

    Raises:
        OptionError: if the operator library, which this takes, does not load.
    """
    import onnx

    model = onnx.load(model_file, load_external_data=False)
    needs_library = any(domain.domain == DOMAIN for domain in model.opset_import)
    scales: dict[str, F32] = {}
    nodes = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    for node, block, (keys, values) in zip(
        nodes, decoder.blocks, _keys_and_values(model_file, ids, needs_library), strict=True
    ):
        scales[node.input[_K_SCALE]] = key_scales(keys, decoder, block)
        scales[node.input[_V_SCALE]] = _scale(np.abs(values).max(axis=(0, 1)))
    for tensor in model.graph.initializer:
        if tensor.name in scales:
            _store(tensor, scales[tensor.name], model_file.parent)
    onnx.save(model, model_file)


def key_scales(keys: F32, decoder: Decoder, block: Block) -> F32:
    """Scales of rotated keys [batch, length, kv_heads * head_dim].

    Rotation moves values between the two channels of a pair as positions grow, so both get the length of the pair.
    """
    heads = keys.reshape(-1, decoder.kv_heads, decoder.head_dim)
    magnitudes = np.abs(heads)
    if block.rope is not None:
        half = block.rope.rotated(decoder.head_dim) // 2
        pairs = np.hypot(heads[..., :half], heads[..., half : 2 * half])
        magnitudes[..., : 2 * half] = np.concatenate([pairs, pairs], axis=-1)
    return _scale(magnitudes.max(axis=0).reshape(-1))


def _scale(largest: F32) -> F32:
    scale: F32 = (np.maximum(largest, np.float32(1e-6)) * np.float32(_MARGIN / _LEVELS)).astype(np.float32)
    return scale


def _keys_and_values(model_file: Path, ids: npt.NDArray[np.int64], needs_library: bool) -> Iterator[tuple[F32, F32]]:
    """Keys and values [1, length, kv_heads * head_dim] of every layer, computed with a float32 cache."""
    import onnx
    import onnxruntime as ort

    from fairy2i_runtime.engine.session import open_session
    from fairy2i_runtime.errors import Fairy2iRuntimeError

    model = onnx.load(model_file, load_external_data=False)
    wanted = []
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            del node.input[_K_SCALE - 1 :]
            kept = [
                attribute
                for attribute in node.attribute
                if "quant_type" not in attribute.name and "bit" not in attribute.name
            ]
            del node.attribute[:]
            node.attribute.extend(kept)
            wanted += node.input[1:3]
    cache = [value for value in (*model.graph.input, *model.graph.output) if value.name.startswith(("past_", "present."))]
    for value in cache:
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in wanted)
    try:
        session = open_session(model.SerializeToString(), folder=model_file.parent, needs_library=needs_library)
    except Fairy2iRuntimeError as error:
        raise OptionError(f"kv cache int8: its scales are measured by running the model, and that fails: {error}") from error
    feeds: dict[str, npt.NDArray[Any]] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for item in session.get_inputs():
        if item.name.startswith("past_"):
            feeds[item.name] = np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32)
    only_these = ort.RunOptions()
    only_these.only_execute_path_to_fetches = True  # not the logits, which take more memory than all else
    arrays = session.run(wanted, feeds, only_these)
    yield from zip(arrays[0::2], arrays[1::2], strict=True)


def _store(tensor: Any, values: F32, folder: Path) -> None:
    """Replace the float32 values of an initializer, wherever they lie."""
    if tensor.external_data:
        place = {entry.key: entry.value for entry in tensor.external_data}
        with (folder / place["location"]).open("r+b") as file:
            file.seek(int(place["offset"]))
            file.write(values.astype("<f4").tobytes())
    else:
        tensor.raw_data = values.astype("<f4").tobytes()
