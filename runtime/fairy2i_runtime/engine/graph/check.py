"""Whether a model.onnx is a decoder as fairy2i-export writes them: operators, attributes, shapes, places of external data.

onnxruntime dies of some graphs (a ``Max`` with an absent input, a ``GroupQueryAttention`` with absurd numbers of heads, a sparse
initializer), and its kernels do not check every index. What is not an exported decoder is therefore not given to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fairy2i_runtime.engine.graph import layers, positions
from fairy2i_runtime.engine.graph.call import (
    Activation,
    Cache,
    Call,
    DataFileError,
    GraphError,
    as_constant,
    as_list,
    attributes_of,
)
from fairy2i_runtime.engine.graph.function import check_function
from fairy2i_runtime.engine.graph.model_file import (
    FLOAT,
    FLOAT16,
    INT8,
    INT64,
    Tensor,
    read_model,
    tensor,
    value_type,
)
from fairy2i_runtime.engine.graph.operators import CONTRIB, RULES
from fairy2i_runtime.engine.graph.wire import WireError
from fairy2i_runtime.folder import LOGITS_TO_KEEP
from fairy2i_runtime.regular_file import open_regular

_STEPS = frozenset(("", name) for name in positions.OPERATORS)
_VERSIONS = {"": range(18, 27), CONTRIB: range(1, 2), layers.DOMAIN: range(1, 2)}  # of operator sets
_IR_VERSIONS = range(8, 14)
_CACHE = re.compile(r"past_key_values\.(\d{1,5})\.(key|value)")


def check_graph(data: bytes, folder: Path, context_length: int) -> None:
    """Look at a model before onnxruntime does.

    Args:
        data: the contents of model.onnx.
        folder: where its external data lies.
        context_length: the most tokens that are going to be run.

    Raises:
        GraphError: if it is no decoder of fairy2i-export; what was expected, what was found, and where.
    """
    try:
        _Graph(read_model(data), folder).check(context_length)
    except WireError as error:
        raise GraphError(str(error)) from None


class _Graph:
    """A graph while it is checked.

    Attributes:
        values: what is known of every value so far, by name: a Tensor, an Activation, a Cache, or the name of a step of the
            positions.
    """

    def __init__(self, model: dict[str, Any], folder: Path) -> None:
        self.model, self.graph, self.folder = model, model["graph"], folder
        self.values: dict[str, Any] = {}
        self.sizes: dict[str, int] = {}  # of files with external data
        self.caches: dict[str, Cache] = {}
        self.table_rows: list[int] = []
        self.embedding_rows: list[int] = []

    def check(self, context_length: int) -> None:
        self._check_versions()
        for function in self.model["functions"]:
            check_function(function)
        for fields in self.graph["inputs"]:
            self._add(fields.get("name", ""), self._input(fields))
        outputs = self._output_names()
        for fields in self.graph["initializers"]:
            found = tensor(fields)
            if found.name == LOGITS_TO_KEEP and self.values.get(found.name) == positions.KEEP:
                if as_list(found) != "[0]":
                    raise GraphError(f"input {found.name}: expected 0 as its default")
                continue
            if found.raw is None:
                self._check_place(found)
            self._add(found.name, found)
        for node in self.graph["nodes"]:
            self._node(node)
        self._check_outputs(outputs)
        self._check_described()
        rows = min(self.table_rows, default=context_length)
        if rows < context_length:
            raise GraphError(f"the rotary tables have {rows} positions, fewer than the context of {context_length} tokens")

    def _check_versions(self) -> None:
        if self.model.get("ir_version") not in _IR_VERSIONS:
            raise GraphError(f"expected ir_version 8 to 13, found {self.model.get('ir_version')}")
        seen = set()
        for entry in self.model["opsets"]:
            domain, version = entry.get("domain", ""), entry.get("version", 0)
            if domain in seen or version not in _VERSIONS.get("" if domain == "ai.onnx" else domain, ()):
                raise GraphError(f"operators of {domain or 'ONNX'!r}, version {version}")
            seen.add(domain)

    def _add(self, name: str, value: Any) -> None:
        if not name or name in self.values:
            raise GraphError(f"the value {name!r} is given twice, or has no name")
        self.values[name] = value

    def _input(self, fields: dict[str, Any]) -> Any:
        name = fields.get("name", "")
        kind, dims = value_type(fields)
        if name in ("input_ids", "attention_mask"):
            if kind != INT64 or dims is None or len(dims) != 2:
                raise GraphError(f"input {name}: expected int64 [batch, sequence]")
            return positions.TOKENS if name == "input_ids" else positions.MASK
        if name == LOGITS_TO_KEEP:
            defaults = [fields for fields in self.graph["initializers"] if fields.get("name") == name]
            if (kind, dims) != (INT64, (1,)) or len(defaults) != 1:
                raise GraphError(f"input {name}: expected int64 [1] with a default")
            return positions.KEEP
        match = _CACHE.fullmatch(name)
        if match is None:
            raise GraphError(f"an input {name!r}, which no exported decoder has")
        if kind not in (FLOAT, FLOAT16, INT8) or dims is None or len(dims) != 4 or not dims[1] or not dims[3]:
            raise GraphError(f"input {name}: expected float, float16 or int8 [batch, kv_heads, past, head] with fixed heads")
        self.caches[name] = Cache(int(match[1]), match[2], kind, dims[1], dims[3])
        return self.caches[name]

    def _check_place(self, found: Tensor) -> None:
        """External data: a file in the folder that holds all of it."""
        what = f"initializer {found.name!r}"
        location = found.external.get("location", "")
        if (
            location in ("", "..")
            or Path(location).name != location
            or "\\" in location
            or ":" in location
            or "\0" in location
        ):
            raise GraphError(f"{what}: expected its data in a file of the folder, found {location!r}")
        if location not in self.sizes:
            try:
                with open_regular(self.folder / location, 1 << 62, "weights") as file:
                    self.sizes[location] = file.seek(0, 2)
            except FileNotFoundError:
                raise DataFileError(
                    f"{self.folder / location} is missing: it holds the weights of the model and has to lie beside it under this "
                    "name; copy the whole folder, or export the model again"
                ) from None
            except OSError as error:
                raise DataFileError(
                    f"cannot read {self.folder / location}: {error.strerror}; export the model again"
                ) from None
        numbers = {key: found.external.get(key, "0" if key == "offset" else "") for key in ("offset", "length")}
        if not all(re.fullmatch(r"\d{1,18}", number) for number in numbers.values()):
            raise GraphError(f"{what}: expected numbers for offset and length of its data, found {numbers}")
        offset, length = int(numbers["offset"]), int(numbers["length"])
        if length != found.nbytes:
            raise GraphError(f"{what}: expected {found.nbytes} bytes of data, found {length}")
        if offset + length > self.sizes[location]:
            raise DataFileError(
                f"{self.folder / location} ends too early, after {self.sizes[location]} bytes: expected {offset + length} or more "
                "for the weights of the model; was it copied or downloaded completely? Copy it again, or export the model again"
            )

    def _node(self, node: dict[str, Any]) -> None:
        operator, domain = node.get("op", ""), node.get("domain", "")
        try:
            attributes = attributes_of(node)
            operands = [self._operand(name) for name in node["inputs"]]
            outputs = node["outputs"]
            standard = "" if domain == "ai.onnx" else domain
            if (standard, operator) in _STEPS and len(outputs) == 1:
                shown = " ".join(f"{name}={value}" for name, value in sorted(attributes.items()))
                step = positions.step(operator, tuple(map(as_constant, operands)), shown)
                if step is not None:
                    self._add(outputs[0], step)
                    return
            rule = RULES.get((standard, operator))
            if rule is None or node.get("overload"):
                raise GraphError("an operator that no exported decoder has, or not there")
            call = Call(operator, [as_list(operand) for operand in operands], outputs, attributes)
            found = rule(call)
            call.need(not call.attributes, f"no attributes {', '.join(call.attributes)}")
            call.need(1 <= len(outputs) <= len(found) and bool(outputs[0]), "other outputs")
        except (GraphError, WireError) as error:
            shown = f"{domain}::{operator}" if domain else operator
            raise GraphError(f"node {node.get('name', '')!r} ({shown}): {error}") from None
        self.table_rows += call.positions_from_tables
        self.embedding_rows += call.embedding_rows
        for name, value in zip(outputs, found, strict=False):
            if name:
                if value is None:
                    raise GraphError(f"node {node.get('name', '')!r}: an output {name!r} that no exported decoder has")
                self._add(name, value)

    def _operand(self, name: str) -> Any:
        if not name:
            return None
        if name not in self.values:
            raise GraphError(f"the input {name!r} comes from nowhere, or from a later node")
        return self.values[name]

    def _output_names(self) -> list[str]:
        """Names of the graph's outputs, which go with its inputs."""
        names = [fields.get("name", "") for fields in self.graph["outputs"]]
        count = len(self.caches) // 2
        present = [f"present.{layer}.{part}" for layer in range(count) for part in ("key", "value")]
        expected = {"input_ids", "attention_mask", *(name.replace("present", "past_key_values") for name in present)}
        given = set(self.values) - {LOGITS_TO_KEEP}
        if not count or given != expected:
            odd = sorted(expected ^ given) or ["past_key_values.0.key"]
            raise GraphError(f"missing or unexpected inputs {', '.join(odd[:6])}")
        if sorted(names) != sorted(["logits", *present]):
            raise GraphError(f"missing or unexpected outputs {', '.join(sorted({'logits', *present} ^ set(names))[:6])}")
        return names

    def _check_outputs(self, names: list[str]) -> None:
        """Logits and present.LAYER.PART come out as they are declared."""
        for fields, name in zip(self.graph["outputs"], names, strict=True):
            kind, dims = value_type(fields)
            value: Any = self.values.get(name)
            if isinstance(value, Cache):
                fits = name == f"present.{value.layer}.{value.part}" and dims is not None and len(dims) == 4
                fits = fits and kind == value.type and dims is not None and dims[1::2] == (value.heads, value.size)
            else:
                is_logits = name == "logits" and isinstance(value, Activation) and len(value.tail) == 1
                fits = is_logits and dims is not None and len(dims) == 3 and (kind, dims[2:]) == (value.type, value.tail)
            if not fits:
                raise GraphError(f"output {name}: of another type or shape than what comes out")
        vocabulary = self.values["logits"].tail[0]
        if min(self.embedding_rows, default=0) < vocabulary:
            raise GraphError(f"the embedding has fewer rows than there are logits, {vocabulary}")

    def _check_described(self) -> None:
        """Descriptions of inner values, which onnxruntime believes, are those of weights or fit what is known."""
        for fields in self.graph["values"]:
            name = fields.get("name", "")
            kind, dims = value_type(fields)
            value = self.values.get(name)
            if isinstance(value, Tensor):
                fits = kind == value.data_type and (dims is None or _fit(dims, value.dims))
            elif isinstance(value, Activation):
                fits = kind == value.type and (dims is None or _fit(dims, (None, None, *value.tail)))
            else:
                fits = isinstance(value, str)
            if not fits:
                raise GraphError(f"value {name!r}: is described with another type or shape than it has")


def _fit(dims: tuple[int | None, ...], known: tuple[int | None, ...]) -> bool:
    """Whether dimensions, None for unknown ones, can be the same."""
    return len(dims) == len(known) and all(None in (a, b) or a == b for a, b in zip(dims, known, strict=True))


def known_operators() -> Iterable[tuple[str, str]]:
    """(domain, operator) of all that a graph may have."""
    return {*RULES, *_STEPS}
