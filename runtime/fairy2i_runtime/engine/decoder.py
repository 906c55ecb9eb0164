"""Run the model: tokens in, logits out, the cache updated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from fairy2i_runtime.engine.failures import INT8_CACHE_ORT, is_memory_short, problem_of, too_old
from fairy2i_runtime.engine.interruption import Interrupted, Interruption
from fairy2i_runtime.engine.kvcache import CacheShape, KVCache
from fairy2i_runtime.engine.mapped_file import MappedFile
from fairy2i_runtime.errors import ContextError, ModelFolderError, OptionError, OutOfMemoryError, RunError, printable
from fairy2i_runtime.folder import LOGITS_TO_KEEP
from fairy2i_runtime.ops.library import ort_version

F32 = npt.NDArray[np.float32]
PREFILL_CHUNK = (
    128  # tokens per run: enough to amortize the weights, few enough to bound the memory of activations and logits
)
MOST_LOGITS = 1 << 24
MOST_HEADS = 1 << 16  # and values of a head
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_CACHES = {**_FLOATS, "tensor(int8)": np.int8}


class Decoder:
    """A decoder graph in an onnxruntime session.

    Attributes:
        session: the session.
        vocab: number of logits.
        cache_shape: shape of the key-value cache.
        selects: whether the graph computes logits of the last tokens alone where no others are asked for; it does so since
            it has the input num_logits_to_keep.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        context_length: int,
        *,
        name: str = "model",
        mapped: MappedFile | None = None,
    ) -> None:
        """Read the dimensions from the graph's inputs and outputs.

        Args:
            session: of a graph with the inputs input_ids, attention_mask, past_key_values.{i}.{key,value}, num_logits_to_keep,
                which may be missing, and the outputs logits, present.{i}.{key,value}.
            context_length: the most tokens the model was built for.
            name: how to call the model in error messages.
            mapped: the file that its weights are mapped from, if they are.

        Raises:
            LibraryError: if onnxruntime is too old for the cache.
            ModelFolderError: if the graph is of another form.
        """
        self.session = session
        self.context_length = context_length
        self._mapped = mapped
        self.cache_shape = _cache_shape(session, name)
        self._logits_dtype, self.vocab = _logits(session, name)
        self.selects = any(
            (item.name, item.type, item.shape) == (LOGITS_TO_KEEP, "tensor(int64)", [1])
            for item in session.get_overridable_initializers()
        )
        self._mask = np.ones((1, context_length), np.int64)

    def new_cache(self, capacity: int | None = None) -> KVCache:
        """An empty cache for ``capacity`` tokens, at most and by default those of the context."""
        return KVCache(self.session, self.cache_shape, min(capacity or self.context_length, self.context_length))

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Raise an :class:`OptionError` if a token is not in the vocabulary."""
        for token in tokens:
            if not 0 <= token < self.vocab:
                raise OptionError(
                    f"token {token} is not in the vocabulary of {self.vocab}; tokenizer and model do not match"
                )

    def next_logits(self, tokens: Sequence[int], cache: KVCache, interruption: Interruption | None = None) -> F32:
        """Append ``tokens`` (at least one) to the cache; logits of the token after the last, float32 [vocab].

        Raises:
            ContextError: if they do not fit.
            Interrupted: if ``interruption`` asks for it; what was run so far is in the cache.
            OptionError: if a token is not in the vocabulary.
        """
        self._check(tokens, cache)
        for start in range(0, len(tokens), PREFILL_CHUNK):
            logits = self._run(tokens[start : start + PREFILL_CHUNK], cache, 1, interruption)
        return np.asarray(logits[-1], np.float32)

    def all_logits(
        self,
        tokens: Sequence[int],
        cache: KVCache,
        *,
        last: int | None = None,
        interruption: Interruption | None = None,
    ) -> F32:
        """Append ``tokens`` to the cache; logits after each of the last ones, float32 [last, vocab].

        Args:
            tokens: at least one.
            cache: with the tokens before them.
            last: for how many of them, at least 1; None = all.
            interruption: as for :meth:`next_logits`.

        Raises:
            ContextError: if they do not fit.
            Interrupted: if ``interruption`` asks for it; what was run so far is in the cache.
            OptionError: if a token is not in the vocabulary.
        """
        self._check(tokens, cache)
        count = len(tokens) if last is None else min(last, len(tokens))
        result = _room((count, self.vocab), np.float32)
        for start in range(0, len(tokens), PREFILL_CHUNK):
            part = tokens[start : start + PREFILL_CHUNK]
            end = start + len(part) - len(tokens) + count  # of its rows in the result
            wanted = min(len(part), end)
            rows = self._run(part, cache, max(wanted, 1), interruption)
            if wanted > 0:
                result[end - wanted : end] = rows
        return result

    def _run(
        self, tokens: Sequence[int], cache: KVCache, last: int, interruption: Interruption | None = None
    ) -> npt.NDArray[Any]:
        ids = np.asarray(tokens, np.int64)[None]
        logits = self.run(ids, self._mask[:, : len(cache) + ids.shape[1]], cache.binding, interruption, last=last)
        cache.tokens.extend(int(token) for token in tokens)
        return logits.reshape(-1, self.vocab)

    def run(
        self,
        ids: npt.NDArray[np.int64],
        mask: npt.NDArray[np.int64],
        binding: ort.IOBinding,
        interruption: Interruption | None = None,
        *,
        last: int,
    ) -> npt.NDArray[Any]:
        """Run the graph once; nothing is checked.

        Args:
            ids: the new tokens [batch, sequence], contiguous.
            mask: zeros for padding, ones for tokens, the new ones included [batch, total], contiguous.
            binding: with a cache of that batch.
            interruption: asked whether to stop, before the run and during it.
            last: of how many columns at the end of ``ids`` logits are wanted, at least 1.

        Returns:
            Logits [batch, last, vocab] of the graph's type.

        Raises:
            Interrupted: if ``interruption`` asks for it.
            RunError: if onnxruntime gives up; an OutOfMemoryError if that is for want of memory, or if the
                file with the weights has become shorter.
        """
        if interruption is not None:
            interruption.check()
        if self._mapped is not None:
            self._mapped.check()
        last = min(last, ids.shape[1])
        logits = _room((ids.shape[0], last if self.selects else ids.shape[1], self.vocab), self._logits_dtype)
        kept = np.array([last], np.int64)
        if self.selects:
            binding.bind_input(LOGITS_TO_KEEP, "cpu", 0, np.int64, kept.shape, kept.ctypes.data)
        binding.bind_input("input_ids", "cpu", 0, np.int64, ids.shape, ids.ctypes.data)
        binding.bind_input("attention_mask", "cpu", 0, np.int64, mask.shape, mask.ctypes.data)
        binding.bind_output("logits", "cpu", 0, self._logits_dtype, logits.shape, logits.ctypes.data)
        try:
            self.session.run_with_iobinding(binding, None if interruption is None else interruption.run_options)
        except Exception as error:  # onnxruntime's exception classes have no common base
            if interruption is not None and interruption.requested:
                raise Interrupted from None
            what = f"onnxruntime gave up running {ids.shape[1]} tokens after {mask.shape[1] - ids.shape[1]}"
            if is_memory_short(error):
                said = " ".join(str(error).split())[-120:]
                raise OutOfMemoryError(f"{what}: memory is short ({said}); a smaller context_length needs less") from error
            raise RunError(f"{what}: {problem_of(error)}") from error
        return logits[:, -last:]

    def _check(self, tokens: Sequence[int], cache: KVCache) -> None:
        if len(tokens) > cache.room:
            raise ContextError(
                f"{len(cache) + len(tokens)} tokens do not fit into the context of {cache.capacity}; shorten the text, or "
                "load the model with a larger context_length if it was made for one"
            )
        self.check_tokens(tokens)


def _room(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array for logits."""
    try:
        return np.empty(shape, dtype)
    except MemoryError:
        size = np.prod(shape, dtype=np.float64) * np.dtype(dtype).itemsize
        raise OutOfMemoryError(
            f"no memory for the logits of {int(np.prod(shape[:-1]))} tokens ({size / 1e6:.0f} MB); run fewer or shorter texts "
            "at once"
        ) from None


def _logits(session: ort.InferenceSession, name: str) -> tuple[npt.DTypeLike, int]:
    """(type, number) of the logits."""
    logits = next(output for output in session.get_outputs() if output.name == "logits")
    shape = logits.shape or []
    if logits.type not in _FLOATS or len(shape) != 3 or not _is_size(shape[2], MOST_LOGITS):
        raise ModelFolderError(
            f"{name}: logits: expected float or float16 [batch, sequence, vocabulary] with a fixed vocabulary of at most "
            f"{MOST_LOGITS:,}, got {printable(f'{logits.type} {shape}')}"
        )
    return _FLOATS[logits.type], int(shape[2])


def _is_size(dim: object, most: int) -> bool:
    return isinstance(dim, int) and 0 < dim <= most


def _cache_shape(session: ort.InferenceSession, name: str) -> CacheShape:
    inputs = {item.name: item for item in session.get_inputs()}
    outputs = {item.name for item in session.get_outputs()}
    layers = sum(re.fullmatch(r"past_key_values\.\d+\.key", item) is not None for item in inputs)
    past = {f"past_key_values.{layer}.{part}" for layer in range(layers) for part in ("key", "value")}
    present = {f"present.{layer}.{part}" for layer in range(layers) for part in ("key", "value")}
    expected_in, expected_out = {"input_ids", "attention_mask"} | past, {"logits"} | present
    if layers == 0 or set(inputs) != expected_in or outputs != expected_out:
        odd = sorted((set(inputs) ^ expected_in) | (outputs ^ expected_out)) or ["past_key_values.0.key"]
        raise ModelFolderError(
            f"{name}: not a decoder of fairy2i-export: missing or unexpected inputs or outputs {printable(', '.join(odd[:6]))}"
        )
    key = inputs["past_key_values.0.key"]
    if key.type == "tensor(int8)" and ort_version() < INT8_CACHE_ORT:  # 1.26 opens it, and fails when it runs
        raise too_old(name, INT8_CACHE_ORT, "for its int8 key-value cache")
    shape = key.shape or []
    if key.type not in _CACHES or len(shape) != 4 or not all(_is_size(shape[axis], MOST_HEADS) for axis in (1, 3)):
        raise ModelFolderError(
            f"{name}: past_key_values.0.key: expected float, float16 or int8 [batch, kv_heads, past, head] with fixed heads, "
            f"got {printable(f'{key.type} {shape}')}"
        )
    for item in (*session.get_inputs(), *session.get_outputs()):
        if item.name in past | present and (item.type != key.type or [*(item.shape or [])][1::2] != [shape[1], shape[3]]):
            found = printable(f"{item.name}: {item.type} {item.shape}")
            raise ModelFolderError(f"{name}: expected keys and values of one shape, {key.type} {shape}, got {found}")
    return CacheShape(layers, key.shape[1], key.shape[3], _CACHES[key.type])
