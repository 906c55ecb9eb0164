"""The metadata of a model.onnx: how it was made. All keys are written and read here (docs/export.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Protocol

import onnx_ir as ir

from fairy2i_export.codes.choices import Choices
from fairy2i_export.onnx_graph.operator import layout_of
from fairy2i_runtime.version import __version__

FORMAT_VERSION = 1  # of the exported folder: inputs, outputs, files, metadata keys
KERNELS_KEY = "kernels"
RECOVERED = "recovered"  # in the place of how codes were chosen: they were read off a dequantized matrix
_PREFIX = "fairy2i."
# what is said about the graph, which stays true when linear layers of it are rewritten
_OF_THE_GRAPH = (
    "format_version",
    "architecture",
    "embedding",
    "kv_cache",
    "rope_scaling",
    "rope_frequencies",
    "attention_scale",
)
_ROUNDED_HEADS = ("int8", "int4")  # of operators that are not rewritten


class Described(Choices, Protocol):
    """The options of an export that its metadata tells."""

    @property
    def backend(self) -> str: ...
    @property
    def lm_head(self) -> str: ...
    @property
    def embedding(self) -> str: ...
    @property
    def kv_cache(self) -> str: ...
    @property
    def rope_scaling(self) -> str | None: ...
    @property
    def rotation(self) -> str | None: ...
    @property
    def rope_frequencies(self) -> str | None: ...
    @property
    def attention_scale(self) -> str | None: ...


def describe_export(
    model: ir.Model,
    options: Described,
    *,
    stages: Mapping[str, str],
    architecture: str,
    source: str,
    sha256: str,
    calibration: str | None,
) -> None:
    """Write producer and metadata of a compiled checkpoint.

    Args:
        model: to write into.
        options: in force.
        stages: what :func:`fairy2i_export.onnx_graph.stage_map.stage_entries` says about the layers.
        architecture: class name in the source's config.json.
        source: name of the checkpoint.
        sha256: its hash.
        calibration: what it was calibrated with, or None.
    """
    model.producer_name = "fairy2i-export"
    model.producer_version = __version__
    _update(
        model,
        {
            "format_version": FORMAT_VERSION,
            "layout_version": layout_of(model),
            **stages,
            "backend": options.backend,
            "profile": options.profile,
            "source": source,
            "source_sha256": sha256,
            "tool_version": __version__,
            "lm_head": options.lm_head,
            "embedding": options.embedding,
            "quantizer": options.quantizer,
            "row_multiplier": options.row_multiplier,
            "col_multiplier": options.col_multiplier,
            "scales": options.scales,
            "architecture": architecture,
            "kv_cache": options.kv_cache,
            "rope_scaling": options.rope_scaling,
            "rope_frequencies": options.rope_frequencies,
            "attention_scale": options.attention_scale,
            "calibration": calibration,
            "rotation": options.rotation,
        },
    )


@dataclass(frozen=True)
class Rewritten:
    """How the codes of rewritten layers were made, an entry for each layer; RECOVERED for codes that it had before."""

    stages: tuple[int, ...]
    profile: tuple[str, ...]
    quantizer: tuple[str, ...]
    row_multiplier: tuple[str, ...]


def describe_rewrite(model: ir.Model, layers: Rewritten, *, source: str, sha256: str, others: bool) -> None:
    """Metadata of a model some of whose layers were rewritten.

    What the source's metadata says about how it was made is dropped: it speaks of other bytes. Keys of other tools stay.

    Args:
        model: to write into.
        layers: those that were rewritten.
        source: name of the model file.
        sha256: of it and its external data.
        others: whether the model had operator nodes before: what was said about their codes holds for them.
    """
    props = model.metadata_props
    ours = {key.removeprefix(_PREFIX): value for key, value in props.items() if key.startswith(_PREFIX)}
    for key in ours:
        del props[_PREFIX + key]
    kept = {key: ours[key] for key in _OF_THE_GRAPH if key in ours}
    if ours.get("lm_head") in _ROUNDED_HEADS:
        kept["lm_head"] = ours["lm_head"]
    before = {item.name: ours.get(item.name, "").split(",") if others else [] for item in fields(layers)}
    how = {key: [*filter(None, values), *map(str, getattr(layers, key))] for key, values in before.items()}
    how["stages"].sort()
    _update(
        model,
        {
            **kept,
            "layout_version": layout_of(model),
            **{key: ",".join(dict.fromkeys(values)) for key, values in how.items()},
            "source": source,
            "source_sha256": sha256,
            "tool_version": __version__,
        },
    )


def kernels_entry(kernels: str) -> tuple[str, str]:
    """(key, value) that records which kernels hold the numerics contract: names with commas between them, maybe none."""
    return _PREFIX + KERNELS_KEY, kernels


class ModelMetadata:
    """What a model says of itself.

    Args:
        props: the metadata of the file.
    """

    def __init__(self, props: Mapping[str, str]) -> None:
        self._props = props

    def get(self, key: str, default: str = "") -> str:
        """The value of one of our keys, without its prefix."""
        return self._props.get(_PREFIX + key, default)

    @property
    def source_sha256(self) -> str:
        """Hash of the source; empty if it is not told."""
        return self.get("source_sha256")

    @property
    def stages(self) -> tuple[int, ...]:
        """All numbers of stages that layers have, ascending; empty if it is not told."""
        return tuple(sorted(int(number) for number in self.get("stages").split(",") if number.isdecimal()))

    @property
    def rope_scaling(self) -> str | None:
        """As it was asked for, or None."""
        return self._props.get(f"{_PREFIX}rope_scaling")

    @property
    def rotation(self) -> str | None:
        """The rotations that are absorbed into its weights, for source/rotation/choice.py to read; None: there are none."""
        return self._props.get(f"{_PREFIX}rotation")

    @property
    def kernels(self) -> tuple[str, ...] | None:
        """The kernels that hold the numerics contract on this model, as a conversion found; None if nobody looked."""
        found = self._props.get(_PREFIX + KERNELS_KEY)
        return None if found is None else tuple(filter(None, found.split(",")))

    @property
    def is_calibrated(self) -> bool:
        """Whether codes were found by calibration on a text."""
        return f"{_PREFIX}calibration" in self._props

    @property
    def is_tuned(self) -> bool:
        """Whether calibration changed norms, so that they are not the source's."""
        try:
            said = json.loads(self.get("calibration", "{}"))
        except ValueError:
            return False
        return isinstance(said, dict) and said.get("tuned") is True

    @property
    def is_recovered(self) -> bool:
        """Whether codes of some layers were read off dequantized matrices: nobody knows how those were quantized."""
        return RECOVERED in self.get("profile").split(",")

    @property
    def is_rounded(self) -> bool:
        """Whether head or cache, or the embedding to 8 bits, hold less than the source's values."""
        rounded_head = self.get("lm_head", "fairy2i") in _ROUNDED_HEADS
        return rounded_head or self.get("embedding") in ("int8", "shared") or self.get("kv_cache", "float32") != "float32"


def without_prefix(key: str) -> str:
    """One of our keys as people read it."""
    return key.removeprefix(_PREFIX)


def key_names(keys: Iterable[str]) -> str:
    """Keys as they stand in a file, for messages."""
    return ", ".join(_PREFIX + key for key in keys)


def _update(model: ir.Model, values: Mapping[str, object]) -> None:
    model.metadata_props.update({_PREFIX + key: str(value) for key, value in values.items() if value is not None})
