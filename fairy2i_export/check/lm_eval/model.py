"""The model class that lm_eval calls. Texts are cut into tokens as lm_eval's ``hf`` model does it, so numbers compare."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from zlib import crc32

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

import fairy2i_runtime
from fairy2i_runtime.errors import OptionError
from fairy2i_runtime.measure.scoring import score_tokens
from fairy2i_runtime.text.conversation import checked_variables

Request = tuple[Any, list[int], list[int]]  # anything, tokens of the context, tokens of the continuation
_SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
_LOG = logging.getLogger(__name__)


@register_model("fairy2i")
class Fairy2iLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """An exported model, run by ONNX Runtime, one request at a time.

    Args:
        path: the model folder.
        threads: threads of onnxruntime; None = one per physical core.
        kernel: kernel family ``lut``, ``exact`` or ``dot``; None = the default.
        isa: instruction set; None = the best one.
        max_length: longest text in tokens; None = the model's context.
        max_gen_toks: tokens to generate where a task does not say.
        batch_size: accepted for lm_eval's sake; requests are run one by one.
        max_batch_size: as batch_size.
        device: accepted because lm_eval always passes one; the operator library runs on the CPU.
        enable_thinking: the variable of this name for the chat template; None = not given.
        chat_template_args: variables for the chat template.

    Raises:
        OptionError: if an argument is impossible, or the chat template takes no such variable.
        Fairy2iRuntimeError: if the folder does not load.
    """

    def __init__(
        self,
        path: str,
        threads: int | None = None,
        kernel: str | None = None,
        isa: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        enable_thinking: bool | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if str(batch_size) not in ("None", "1", "auto"):
            _LOG.warning("fairy2i runs requests one by one: batch_size=%s has no effect", batch_size)
        self.model = fairy2i_runtime.load(path, threads=threads, kernel=kernel, isa=isa, context_length=max_length)
        self.path = path
        template = self.model.chat_template
        self._variables = checked_variables("chat_template_args", chat_template_args, template)
        if enable_thinking is not None:
            self._variables |= checked_variables("enable_thinking", {"enable_thinking": enable_thinking}, template)
        self.max_length = self.model.context_length
        self.max_gen_toks = max_gen_toks
        self._cache = self.model.decoder.new_cache()

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token."""
        eos = self.model.tokenizer.eos_id
        if eos is None and not self.model.eos_ids:
            raise OptionError(f"{self.path}: the model names no end-of-text token, and lm_eval needs one")
        return min(self.model.eos_ids) if eos is None else eos

    @property
    def prefix_token_id(self) -> int:
        """What an empty context becomes: the beginning-of-text token, else the end-of-text token."""
        tokenizer = self.model.tokenizer
        bos = tokenizer.token_id(tokenizer.special_tokens.get("bos_token", ""))
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Part of the key under which lm_eval caches requests, whose texts the variables of the chat template change."""
        name = self.path.replace("/", "__")
        return f"{name}__{crc32(repr(sorted(self._variables.items())).encode()):08x}" if self._variables else name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; None adds what the tokenizer adds to a text, unless the text spells its beginning-of-text token."""
        tokenizer = self.model.tokenizer
        if add_special_tokens is None:
            bos = tokenizer.decode([self.prefix_token_id], skip_special_tokens=False)
            add_special_tokens = not (bos and string.startswith(bos))
        return tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """(log-probability, whether it is what greedy generation gives) of every continuation.

        Requests are run in the order of their tokens, so that those that begin alike share the key-value cache.
        """
        results: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        order = sorted(range(len(requests)), key=lambda i: [*requests[i][1], *requests[i][2]])
        for index in tqdm(order, disable=disable_tqdm, desc="Running loglikelihood requests"):
            key, context, continuation = requests[index]
            if not continuation:
                continue  # nothing to score: certain
            ids = [*context, *continuation][-(self.max_length + 1) :]
            if len(continuation) >= len(ids):
                raise OptionError(
                    f"a continuation of {len(continuation)} tokens does not fit into the context of {self.max_length}"
                )
            scores = score_tokens(self.model.decoder, ids, len(ids) - len(continuation), self._cache)
            results[index] = float(scores.log_probs.sum()), bool(scores.greedy.all())
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, results[index])
        return results

    def loglikelihood_rolling(self, requests: Iterable[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, every token scored once, in windows that do not overlap."""
        results = []
        for (text,) in tqdm([request.args for request in requests], disable=disable_tqdm):
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            pieces: list[Request] = [(None, *make_disjoint_window(window)) for window in windows]
            total = sum(score for score, _ in self._loglikelihood_tokens(pieces, disable_tqdm=True))
            results.append(total)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return results

    def generate_until(self, requests: Iterable[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts generated up to a stop text; too long a prompt loses its beginning."""
        return [
            self._generate(*request.args)
            for request in tqdm(requests, disable=disable_tqdm, desc="Running generate_until requests")
        ]

    def _generate(self, context: str, given: Mapping[str, Any]) -> str:
        options = normalize_gen_kwargs(dict(given), self.max_gen_toks)
        stops = [stop for stop in options.pop("until") or () if stop]
        tokens = options.pop("max_gen_toks")
        if not options.pop("do_sample"):
            options = {"repetition_penalty": options.get("repetition_penalty", 1.0)}
        unknown = [name for name in options if name not in _SAMPLING]
        if unknown:
            raise OptionError(f"generation option {unknown[0]!r} is not supported: expected {', '.join(_SAMPLING)}")
        room = self.max_length - tokens
        if room < 1:
            raise OptionError(f"max_gen_toks: expected less than {self.max_length} (the context), got {tokens}")
        prompt = self.tok_encode(context)[-room:]
        found = self.model.generate(prompt, max_new_tokens=tokens, stop=stops, **options)
        text = self.model.tokenizer.decode(found.token_ids)
        for stop in stops:
            text = text.partition(stop)[0]
        self.cache_hook.add_partial("generate_until", (context, given), text)
        return text

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Names the template for lm_eval's report; None if the model has none or it is not asked for."""
        if not chat_template or self.model.chat_template is None:
            return None
        return f"chat template of {self.path}"

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation.

        Raises:
            OptionError: if the model has no chat template.
        """
        if self.model.chat_template is None:
            raise OptionError(f"{self.path} has no chat template: it is a base model, leave out --apply_chat_template")
        template = self.model.chat_template
        return template.render(chat_history, add_generation_prompt=add_generation_prompt, **self._variables)
