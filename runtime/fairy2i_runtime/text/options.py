"""The options of a generation: by which names callers and commands give them, and which values they may have."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, TypedDict, Unpack

from fairy2i_runtime.engine.lookup import MOST_DRAFTED
from fairy2i_runtime.errors import OptionError, check_option, check_text
from fairy2i_runtime.text.recommended import recommended_sampling
from fairy2i_runtime.text.sampling import SamplingOptions


class GenerationChoices(TypedDict, total=False):
    """The options of a generation as keywords: the fields of :class:`GenerationOptions`, all of them optional."""

    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int | None
    max_new_tokens: int | None
    stop: str | Iterable[str]
    ignore_eos: bool
    lookup: int


@dataclass(frozen=True)
class GenerationOptions(SamplingOptions):
    """How to generate; the sampling options and when to stop.

    Attributes:
        max_new_tokens: the most tokens to generate; None = until the context is full.
        stop: texts that end the generation; they are not part of the result. One text, or several.
        ignore_eos: go on after an end-of-text token, for measurements and comparisons.
        lookup: the most tokens to draft by looking up how the text went on where it read the same before, and to run at once;
            0 = off.

    Raises:
        OptionError: if a value is out of range.
    """

    max_new_tokens: int | None = 128
    stop: str | Iterable[str] = ()
    ignore_eos: bool = False
    lookup: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_new_tokens is not None:
            check_option(
                "max_new_tokens", self.max_new_tokens, Integral, lambda n: n >= 1, "an integer of at least 1, or None"
            )
        stops: Any = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stops, Iterable) or isinstance(stops, bytes | bytearray | Mapping):
            raise OptionError(f"stop: expected a text or several, got {stops!r}")
        object.__setattr__(self, "stop", tuple(stops))
        for stop in self.stop_strings:
            if not isinstance(stop, str) or not stop:
                raise OptionError(f"stop: expected texts of at least one character, got {stop!r}")
            check_text("stop", stop)
        if not isinstance(self.ignore_eos, bool):
            raise OptionError(f"ignore_eos: expected True or False, got {self.ignore_eos!r}")
        check_option(
            "lookup", self.lookup, Integral, lambda n: 0 <= n <= MOST_DRAFTED, f"an integer from 0 (off) to {MOST_DRAFTED}"
        )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple."""
        return tuple(self.stop)

    @classmethod
    def of(cls, **options: Unpack[GenerationChoices]) -> GenerationOptions:
        """Options by name.

        Raises:
            OptionError: if a name is unknown or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        unknown = [name for name in options if name not in known]
        if unknown:
            raise OptionError(f"unknown option {unknown[0]!r}: expected {', '.join(known)}")
        return cls(**options)

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], **options: Unpack[GenerationChoices]) -> GenerationOptions:
        """The sampling that a model's generation_config.json recommends, and the defaults for what it does not mention.

        Values in the file that are no values for the option are left out, with a warning.

        Args:
            folder: the model folder.
            **options: what shall be otherwise.

        Raises:
            ModelFolderError: if there is no such folder, or the file is damaged.
            OptionError: if a name is unknown or a value out of range.
        """
        stated: GenerationChoices = {**recommended_sampling(folder), **options}  # type: ignore[typeddict-item]
        return cls.of(**stated)
