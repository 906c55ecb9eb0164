"""Write the table of limits in docs/security.md from the code that has them: ``python scripts/security_limits.py``.

``tests/project/test_security_docs.py`` keeps it current.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from marked_page import replaced

from fairy2i_export.decoder import config_values
from fairy2i_runtime.serve.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "security.md"
BEGIN, END = "<!-- limits: scripts/security_limits.py -->\n", "<!-- end of limits -->\n"
# module, constant, unit, of what
CONSTANTS = (
    ("fairy2i_runtime.regular_file", "JSON_BYTES", "bytes", "a JSON file of a checkpoint or a model folder"),
    ("fairy2i_runtime.regular_file", "JSON_DEPTH", "levels", "objects and lists in each other, in any JSON"),
    ("fairy2i_runtime.regular_file", "TOKENIZER_BYTES", "bytes", "tokenizer.json, an index of shards"),
    ("fairy2i_runtime.text.tokenizer_file", "MOST_GROWTH", "times", "how much longer the rules of a tokenizer make a text"),
    ("fairy2i_runtime.text.chat_template", "MOST_BYTES", "bytes", "a chat template"),
    ("fairy2i_runtime.text.sandbox.process", "SECONDS", "s", "computing of a chat template, for a conversation"),
    ("fairy2i_runtime.text.sandbox.process", "SECONDS_PER_MB", "s", "... more for each MB of conversation"),
    ("fairy2i_runtime.text.sandbox.program", "MEMORY_BYTES", "bytes", "memory of a chat template, on Linux"),
    ("fairy2i_runtime.text.sandbox.program", "MOST_TEXT", "characters", "a conversation as a template writes it"),
    ("fairy2i_runtime.engine.graph.opening", "MODEL_BYTES", "bytes", "model.onnx of a model folder, without its weights"),
    ("fairy2i_runtime.engine.graph.wire", "MOST_FIELDS", "fields", "... in it"),
    ("fairy2i_runtime.engine.graph.model_file", "MOST_RANK", "dimensions", "a tensor of it"),
    ("fairy2i_runtime.engine.graph.model_file", "MOST_ELEMENTS", "elements", "a tensor of it"),
    ("fairy2i_runtime.engine.integrity", "SUMS_BYTES", "bytes", "SHA256SUMS"),
    ("fairy2i_runtime.folder", "MAX_CONTEXT", "tokens", "the context of a model"),
    ("fairy2i_export.source.safetensors_file", "MAX_HEADER", "bytes", "the header of a safetensors file"),
    ("fairy2i_export.output.journal", "JOURNAL_BYTES", "bytes", "the journal of an unfinished export"),
    ("fairy2i_export.rewrite.opening.sparse", "LIMIT", "bytes", "a sparse initializer, written out"),
    ("fairy2i_export.rewrite.values.subgraph", "CONSTANT_SECONDS", "s", "computing of a constant of a rewritten model"),
    ("fairy2i_export.rewrite.values.subgraph", "CONSTANT_SECONDS_PER_GB", "s", "... more for each GB of its inputs"),
    ("fairy2i_export.codes.layout", "MAX_FEATURES", "features", "K and N of a layer (in C: `F2I_MAX_FEATURES`)"),
    ("fairy2i_export.codes.choices", "MAX_STAGES", "stages", "a layer (in C: `F2I_MAX_STAGES`)"),
)
SERVER = {
    "max_body_kb": "kB of a request",
    "queue": "requests that wait",
    "parallel": "answers at a time",
    "timeout": "s for an answer",
    "cache_mb": "MB of kept caches",
}


def limits() -> dict[str, tuple[str, str]]:
    """Name of a limit -> its value with a unit, and of what it is."""
    found = {
        name: (f"{_number(getattr(import_module(module), name))} {unit}", what) for module, name, unit, what in CONSTANTS
    }
    for name, (low, high) in {**config_values.INTEGERS, **config_values.NUMBERS}.items():
        found[name] = (f"{_number(low)} to {_number(high)}", "config.json")
    for name, what in SERVER.items():
        found[f"--{name.replace('_', '-')}"] = (_number(getattr(Settings(), name)), f"`fairy2i serve`, by default: {what}")
    return found


def _number(value: Any) -> str:
    """A number as people read it: powers of two as such."""
    if isinstance(value, float) or value < 1 << 12 or value & (value - 1):
        return f"{value:,g}" if isinstance(value, float) else f"{value:,}"
    return f"2^{value.bit_length() - 1}"


def table() -> str:
    """The table in Markdown."""
    rows = [f"| `{name}` | {value} | {what} |\n" for name, (value, what) in limits().items()]
    return "".join(["| limit | value | of |\n", "|---|---|---|\n", *rows])


def page() -> str:
    """The page with the table as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    return replaced(text, BEGIN, END, table())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
