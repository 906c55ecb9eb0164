"""A loaded model: text in, text out."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Unpack

import numpy as np
import numpy.typing as npt

from fairy2i_runtime.engine.batch import Batch
from fairy2i_runtime.engine.decoder import F32, Decoder
from fairy2i_runtime.engine.graph.opening import checked_graph
from fairy2i_runtime.engine.integrity import check_integrity
from fairy2i_runtime.engine.mapped_file import mapped_weights
from fairy2i_runtime.engine.session import open_session
from fairy2i_runtime.errors import ChatTemplateError, ModelFolderError, OptionError, check_text
from fairy2i_runtime.folder import ModelFolder, chosen_context_length, open_folder
from fairy2i_runtime.text.batch_generation import generate_batch
from fairy2i_runtime.text.chat_template import ChatTemplate
from fairy2i_runtime.text.conversation import Conversation, checked_message
from fairy2i_runtime.text.generation import TextStream
from fairy2i_runtime.text.options import GenerationChoices, GenerationOptions
from fairy2i_runtime.text.result import Result, Timings
from fairy2i_runtime.text.streaming import StreamDecoder
from fairy2i_runtime.text.tokenizer import Tokenizer

FORMAT_VERSION = 1  # newest model format this release reads
TokenIds = Sequence[int] | npt.NDArray[np.integer[Any]]


def load(
    folder: str | os.PathLike[str],
    *,
    threads: int | None = None,
    kernel: str | None = None,
    isa: str | None = None,
    use_library: bool = True,
    context_length: int | None = None,
    copy: bool = False,
    check: Literal["hashes"] | None = None,
    trust_graph: bool = False,
) -> Model:
    """Load a model folder written by fairy2i-export.

    Args:
        folder: the folder.
        threads: threads to run with; None = one per physical (big) core.
        kernel: ``lut``, ``exact``, ``dot`` (which multiplies) or ``auto`` (which may); None = what FAIRY2I_KERNEL says,
            else what the folder says (an exporter that found ``lut`` too coarse for the model says ``exact``), else
            ``lut``.
        isa: instruction set, such as ``scalar`` or ``avx2``; None = the best one.
        use_library: False runs without the operator library, slowly, to compare with.
        context_length: the most tokens of prompt and answer together; None = what the model was built for. Smaller ones
            bound the memory of the key-value cache.
        copy: True reads the weights into memory. By default their file is mapped, and must not become shorter while the model
            is in use: the system ends a process that reads beyond its end.
        check: ``hashes`` compares every file with SHA256SUMS first, which reads all of them.
        trust_graph: True gives the graph to onnxruntime as it is. By default it has to be one as fairy2i-export writes them:
            onnxruntime dies of some others.

    Raises:
        ModelFolderError: if the folder is missing, incomplete or damaged.
        LibraryError: if the operator library is missing or does not load, or onnxruntime is too old for the model.
        OptionError: if an option is unknown or out of range.
        OutOfMemoryError: if memory is short.
    """
    for name, value in {"copy": copy, "trust_graph": trust_graph}.items():
        if not isinstance(value, bool):
            raise OptionError(f"{name}: expected True or False, got {value!r}")
    if check not in (None, "hashes"):
        raise OptionError(f"check: expected 'hashes' or None, got {check!r}")
    opened = open_folder(folder)
    if check is not None:
        check_integrity(opened.path)
    context = chosen_context_length(context_length, opened)
    tokenizer = Tokenizer.load(opened.path, opened.vocab_size)
    template = ChatTemplate.load(opened.path, tokenizer.special_tokens)
    contents = None if trust_graph else checked_graph(opened)
    session = open_session(
        opened.model_file,
        contents=contents,
        copy=copy,
        threads=threads,
        kernel=opened.kernel_to_run(kernel) if use_library else kernel,
        isa=isa,
        use_library=use_library,
        needs_library=opened.needs_library,
    )
    metadata = dict(session.get_modelmeta().custom_metadata_map)
    _check_format(metadata, opened)
    mapped = None if copy else mapped_weights(opened.model_file)
    decoder = Decoder(session, context, name=str(opened.model_file), mapped=mapped)
    return Model(opened, tokenizer, template, decoder, metadata)


class Model:
    """A model that is ready to run. Made by :func:`load`.

    Attributes:
        folder: where it came from.
        tokenizer: its tokenizer.
        chat_template: its chat template; None for a base model.
        metadata: what the exporter recorded in the .onnx file.
        stats: timings of all generations so far.
    """

    def __init__(
        self,
        folder: ModelFolder,
        tokenizer: Tokenizer,
        chat_template: ChatTemplate | None,
        decoder: Decoder,
        metadata: dict[str, str],
    ) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.metadata = metadata
        self.decoder = decoder
        self.stats = Timings()
        self._recording = threading.Lock()
        eos = tokenizer.eos_id
        self.eos_ids = folder.eos_ids if eos is None else folder.eos_ids | {eos}

    @property
    def context_length(self) -> int:
        """The most tokens of prompt and answer together."""
        return self.decoder.context_length

    def logits(self, token_ids: TokenIds) -> F32:
        """Logits after every token of a text, float32 [len(token_ids), vocab]. Nothing is added to the tokens.

        Raises:
            ContextError: if there are more tokens than the context has room for.
            OptionError: if there are none, or one is not in the vocabulary.
        """
        ids = _as_ids("token_ids", token_ids)
        if not ids:
            raise OptionError("token_ids: expected at least one token, got none")
        return self.decoder.all_logits(ids, self.decoder.new_cache(len(ids)))

    def logits_batch(self, texts: Iterable[TokenIds]) -> list[F32]:
        """As :meth:`logits` for several texts of any lengths in one run.

        Raises:
            ContextError: if one has more tokens than the context has room for.
            OptionError: if there is none, one is empty, or a token is not in the vocabulary.
        """
        found = _several("texts", texts, "lists of token ids")
        return Batch(self.decoder, [_as_ids(f"texts[{n}]", text) for n, text in enumerate(found)]).read()

    def generate_batch(self, prompts: Iterable[str | TokenIds], **options: Unpack[GenerationChoices]) -> list[Result]:
        """As :meth:`generate` for several texts together. Each comes out as it would alone, up to rounding.

        The timings of a result are those of the whole batch.
        """
        found = _several("prompts", prompts, "texts or lists of token ids; for one text there is generate()")
        ids = [self._prompt_ids(f"prompts[{n}]", prompt) for n, prompt in enumerate(found)]
        results = generate_batch(self.decoder, self.tokenizer, ids, GenerationOptions.of(**options), self.eos_ids)
        self.record(results[0])
        return results

    def generate(
        self,
        prompt: str | TokenIds,
        *,
        on_text: Callable[[str], object] | None = None,
        **options: Unpack[GenerationChoices],
    ) -> Result:
        """Continue a text.

        Args:
            prompt: a text (the tokenizer's beginning-of-text token is added) or token ids (taken as they are).
            on_text: called with every piece of text as soon as it is certain.
            **options: fields of :class:`~fairy2i_runtime.text.options.GenerationOptions`: ``max_new_tokens=128``,
                ``temperature=0`` (greedy), ``top_k``, ``top_p``, ``repetition_penalty``, ``seed``, ``stop``, ``ignore_eos``,
                ``lookup``.

        Raises:
            ContextError: if the prompt is empty or too long.
            OptionError: if an option is unknown or out of range, the prompt is no text, or a token not in the vocabulary.
            RunError: if onnxruntime gives up.
        """
        return self.stream(prompt, **options).run(on_text)

    def stream(self, prompt: str | TokenIds, **options: Unpack[GenerationChoices]) -> TextStream:
        """As :meth:`generate`, as an iterator of text pieces; its ``result`` holds the rest once it has ended."""
        ids = self._prompt_ids("prompt", prompt)
        self.decoder.check_tokens(ids)
        chosen = GenerationOptions.of(**options)
        capacity = None if chosen.max_new_tokens is None else len(ids) + chosen.max_new_tokens
        cache = self.decoder.new_cache(capacity)
        detokenizer = StreamDecoder(self.tokenizer.decode, context=ids)
        return TextStream(self.decoder, cache, ids, chosen, detokenizer, self.eos_ids, self.record)

    def chat(
        self,
        messages: Iterable[Mapping[str, Any]],
        *,
        template_variables: Mapping[str, Any] | None = None,
        on_text: Callable[[str], object] | None = None,
        **options: Unpack[GenerationChoices],
    ) -> Result:
        """Answer a list of messages, ``{"role": "user", "content": ...}`` and so on. For turns see :meth:`conversation`.

        Args:
            messages: the messages in order.
            template_variables: see :meth:`conversation`.
            on_text: called with every piece of text as soon as it is certain.
            **options: as for :meth:`generate`.

        Raises:
            ChatTemplateError: if the model has no chat template, or it refuses the messages.
            ContextError: if the messages are too long.
            OptionError: if an option is unknown or out of range, or a message is none.
        """
        found = _several("messages", messages, "messages, each with a role and a content")
        if not found:
            raise OptionError("messages: expected at least one message, got none")
        checked = [checked_message(f"messages[{n}]", message) for n, message in enumerate(found)]
        if self.chat_template is None:
            raise ChatTemplateError(
                f"{self.folder.path} has no chat template: it is a base model, use generate() to continue a text"
            )
        talk = Conversation(self, template_variables=template_variables)
        talk.messages = checked[:-1]
        return talk.stream_message(checked[-1], **options).run(on_text)

    def conversation(
        self, system: str | None = None, *, template_variables: Mapping[str, Any] | None = None
    ) -> Conversation:
        """Begin a conversation of several turns that runs every token only once.

        Args:
            system: the system message, if any.
            template_variables: variables for the chat template, such as ``{"enable_thinking": False}``, ``tools`` or
                ``documents``; ``chat_template.variables`` names those that it knows.

        Raises:
            OptionError: if the system message is no text, or the template knows no such variable.
        """
        return Conversation(self, system, template_variables=template_variables)

    def _prompt_ids(self, name: str, prompt: str | TokenIds) -> list[int]:
        if isinstance(prompt, str | bytes | bytearray):
            return self.tokenizer.encode(check_text(name, prompt))
        return _as_ids(name, prompt, "a text or a list of token ids")

    def record(self, result: Result) -> None:
        """Add a generation to :attr:`stats`. May be called from several threads at once."""
        with self._recording:
            self.stats += result.timings


def _several(name: str, value: Iterable[Any], expected: str) -> list[Any]:
    """The members of a list or the like. A text is none: its characters would be taken for the members."""
    if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Iterable):
        shown = repr(value)
        raise OptionError(f"{name}: expected a list of {expected}, got {type(value).__name__} {shown[:60]}")
    return list(value)


def _as_ids(name: str, tokens: TokenIds, expected: str = "a list of integers") -> list[int]:
    """Token ids as Python integers; also from an integer array of one dimension."""
    try:
        array = np.asarray(tokens)
    except (ValueError, TypeError, OverflowError):  # lists of different lengths, for instance
        array = np.asarray(None)
    if array.size == 0 and array.ndim == 1:
        return []
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        shown = repr(tokens)
        raise OptionError(f"{name}: expected {expected}, got {type(tokens).__name__} {shown[:60]}")
    return [int(token) for token in array]


def _check_format(metadata: Mapping[str, str], folder: ModelFolder) -> None:
    """Refuse files of a newer format than this release knows."""
    version = metadata.get("fairy2i.format_version", str(FORMAT_VERSION))
    major = version.split(".")[0]
    if not major.isdecimal() or len(major) > 9:
        raise ModelFolderError(f"{folder.model_file}: fairy2i.format_version: expected a number, got {version!r}")
    if int(major) > FORMAT_VERSION:
        raise ModelFolderError(
            f"{folder.model_file} has format version {version}, this release reads up to {FORMAT_VERSION}: upgrade it"
        )
