"""The README.md of an exported folder."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from fairy2i_export.compile.result.report import ExportReport
from fairy2i_export.decoder.description import Decoder
from fairy2i_export.errors import install_command
from fairy2i_export.onnx_graph.formats import FORMATS
from fairy2i_export.output.sizes import human_bytes
from fairy2i_export.source.rotation.choice import rotation_words
from fairy2i_runtime.version import __version__

_PROJECT = "fairy2i-export"
_CARD = """# {title}

A language model with {bits:.2f}-bit {method} weights for ONNX Runtime, compiled from `{source}` by fairy2i-export {version}.
{about} The licence of the source applies to these weights.

| | |
|---|---|
| architecture | {architecture}: {layers} layers, hidden {hidden}, {heads} heads ({kv_heads} KV), vocabulary {vocab} |
| parameters | {parameters:,} |
| {operator} layers | {rewritten} of {linears}, {weight_bytes} ({bits:.3f} bits per weight) |
| other linear layers | {kept} |
| embedding, lm_head | {embedding}, {lm_head} |
| stages, profile, quantizer | {stages}, {profile}, {quantizer} |
| multipliers per row, per column; scales | {row_multiplier}, {col_multiplier}; {scales} |
| rotated in the weights | {rotation} |
| context length, key-value cache | {context} tokens, {kv_cache} |
| change of weights by quantization | {mean:.1%} on average, at most {worst:.1%} ({worst_name}) |
| source SHA-256 | `{sha256}` |

## Run it

In a checkout of {repository}:

```
{install}
```

Then, beside this folder:

```
{command}
```

From Python:

```python
import fairy2i_runtime

model = fairy2i_runtime.load("{title}")
print(model.generate("Once upon a time").text)
```

{hosts}"""

_FAIRY2I = """\
Every weight of its rewritten layers is a sum of {terms} complex numbers out of {{+1, -1, +i, -i}}, each with its scale
(arXiv 2512.02901)."""
_IFAIRY = """\
Every complex weight of its rewritten layers is one of {+1, -1, +i, -i}, real and imaginary ones each with a scale of the matrix
(arXiv 2508.05571), and their inputs are rounded to 8 bits."""

_WITH_LIBRARY = """\
In onnxruntime-genai the folder runs as it is: `fairy2i_runtime.genai.load("{title}")` is an `onnxruntime_genai.Model`.
In other languages onnxruntime-genai needs a copy of the operator library in this folder (path:
`python -c "import fairy2i_runtime; print(fairy2i_runtime.library_path())"`).

Without that library ONNX Runtime still runs `model.onnx`, slowly: the file carries the definition of its one custom operator
in standard ONNX. Disable the `ConstantFolding` optimizer then, or the weights are unpacked to floats when the model is loaded.
"""
_WITHOUT_LIBRARY = """Backend `{backend}`: ONNX Runtime and onnxruntime-genai run the folder as it is; there is no operator library.
"""


def _repository() -> str:
    """Of this project, as its package's metadata names it; a name alone if it names none."""
    try:
        urls = metadata(_PROJECT).get_all("Project-URL") or []
    except PackageNotFoundError:  # run from a checkout
        urls = []
    named = {name.strip().lower(): url.strip() for name, _, url in (entry.partition(",") for entry in urls)}
    found = next((named[name] for name in ("repository", "source", "homepage") if name in named), None)
    return f"the repository of {_PROJECT}" + (f" ({found})" if found else "")


def model_card(report: ExportReport, decoder: Decoder) -> str:
    """The Markdown text."""
    kept = Counter(f"{linear.treatment} ({linear.reason})" for linear in report.kept)
    worst_name, worst = report.worst_layer
    terms = " or ".join(map(str, sorted({linear.stages for linear in report.rewritten})))
    backend = FORMATS[report.options.backend]
    hosts = (_WITH_LIBRARY if backend.library else _WITHOUT_LIBRARY).format(backend=backend.name, title=report.path.name)
    return _CARD.format(
        title=report.path.name,
        repository=_repository(),
        install=install_command(),
        command=replace(report, path=Path(report.path.name)).command,
        bits=report.bits_per_weight,
        source=report.source,
        version=__version__,
        stages=report.stages,
        method="iFairy" if decoder.complex_weights else "Fairy2i",
        about=_IFAIRY if decoder.complex_weights else _FAIRY2I.format(terms=terms),
        architecture=decoder.architecture,
        layers=decoder.layers,
        hidden=decoder.hidden_size,
        heads=decoder.heads,
        kv_heads=decoder.kv_heads,
        vocab=decoder.vocab_size,
        parameters=report.parameters,
        operator=backend.operator,
        hosts=hosts,
        rewritten=len(report.rewritten),
        linears=len(report.linears),
        weight_bytes=human_bytes(report.weight_bytes),
        kept=", ".join(f"{count} {what}" for what, count in kept.items()) or "none",
        embedding=report.options.embedding,
        lm_head=report.options.lm_head,
        profile=report.options.profile,
        quantizer=report.options.quantizer,
        row_multiplier=report.options.row_multiplier,
        col_multiplier=report.options.col_multiplier,
        scales=report.options.scales,
        rotation=rotation_words(report.options.rotation),
        context=report.options.context_length,
        kv_cache=report.options.kv_cache,
        mean=report.mean_error,
        worst=worst,
        worst_name=worst_name,
        sha256=report.source_sha256,
    )
