"""Whether an exported model is right: its layers by every kernel, the kernels against each other, and the source."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import fairy2i_runtime
from fairy2i_export.check.source_weights import COMPLEX_NOTE, SourceWeights, check_origin, is_rounded, torch_logits
from fairy2i_export.errors import CheckpointError, OptionError
from fairy2i_export.onnx_graph.operator import Node
from fairy2i_export.output.contract.kernels import REFERENCE, Judgement, judge_kernels
from fairy2i_export.output.contract.layers import LIMITS
from fairy2i_export.output.contract.logits import LogitsComparison, compare
from fairy2i_export.output.contract.nodes import read_nodes
from fairy2i_export.source.hub import open_source
from fairy2i_export.source.text.sample_text import DEFAULT_TEXT, mostly_unknown, sample_ids
from fairy2i_export.source.transformers_model import torch_is_installed
from fairy2i_runtime.engine.threads import default_threads
from fairy2i_runtime.folder import open_folder
from fairy2i_runtime.ops import core
from fairy2i_runtime.ops.tuning import kept_tuning
from fairy2i_runtime.text.special_tokens import TOKENIZER_FILE

LOGITS_LIMIT = 1e-3  # relative error of exact mode against torch, weights alike
TOP1_LIMIT = 0.99
# title, number of steps, what they are -> shows how it goes on and gives a function to advance it
Progress = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]


@dataclass
class Verification:
    """What was found about a model.

    Attributes:
        model: the folder.
        tokens: of the text that went through it.
        kernels: layers by every kernel.
        default: the kernel that runs if nobody chooses one.
        logits: by (kernel, reference): comparisons of the logits.
        source: the checkpoint it was compared with, if one was given.
        differing: layers whose codes differ from the source's, and how; None: not compared.
        notes: what one should know.
        advice: what one can do.
        problems: what is wrong; none: the model passed.
    """

    model: str
    tokens: int
    kernels: Judgement
    default: str
    logits: dict[tuple[str, str], LogitsComparison]
    source: str | None = None
    differing: list[tuple[str, str]] | None = None
    notes: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        verdicts = self.kernels.verdicts
        return {
            "model": self.model,
            "passed": not self.problems,
            "problems": self.problems,
            "notes": self.notes,
            "advice": self.advice,
            "tokens": self.tokens,
            "default_kernel": self.default,
            "kernels": {
                name: {
                    "holds": verdict.holds,
                    "layers_failing": verdict.failing,
                    "worst_layer": verdict.worst,
                    "worst_excess": verdict.excess,
                    "limits": {kind: limit for (kernel, kind), limit in LIMITS.items() if kernel == name},
                }
                for name, verdict in verdicts.items()
            },
            "layers": [
                {
                    "name": layer.name,
                    "shape": list(layer.shape),
                    "errors": {
                        name: {kind: error for (kernel, kind), error in layer.errors.items() if kernel == name}
                        for name in verdicts
                    },
                }
                for layer in self.kernels.layers
            ],
            "logits": [
                {"kernel": kernel, "reference": reference, **vars(found), "log_ratio": found.log_ratio}
                for (kernel, reference), found in self.logits.items()
            ],
            "against": None if self.source is None else self._against(),
        }

    def _against(self) -> dict[str, Any]:
        differing = None if self.differing is None else [{"name": name, "reason": why} for name, why in self.differing]
        return {"source": self.source, "differing": differing}


def verify(
    folder: Path,
    against: str | None,
    content: str | None,
    tokens: int,
    isa: str | None,
    progress: Progress,
    *,
    trust_graph: bool = False,
) -> Verification:
    """Check a model folder.

    Args:
        folder: the folder.
        against: the checkpoint it was exported from, or None.
        content: the text that makes activations; None = the one that is built in.
        tokens: use at most this many tokens of it.
        isa: instruction set to force, or None.
        progress: shows how it goes on.
        trust_graph: as for :func:`fairy2i_runtime.load`.

    Raises:
        Fairy2iError, Fairy2iRuntimeError: if something keeps it from being checked.
    """
    checkpoint = None if against is None else open_source(against)
    model_file = open_folder(folder).model_file
    nodes = read_nodes(model_file)  # before loading, which would find fault with a kernel chosen here
    if checkpoint is not None:
        check_origin(model_file, checkpoint)
    model = fairy2i_runtime.load(folder, kernel=REFERENCE, isa=isa, trust_graph=trust_graph)
    source = None if checkpoint is None else _Source(SourceWeights(checkpoint, model_file, model.metadata), nodes)
    ids, notes = _text_ids(model, content, min(tokens, model.context_length))
    with progress("layers", len(nodes), "layers") as advance:
        kernels = judge_kernels(model.folder.model_file, nodes, ids, isa=isa, done=lambda: advance(1))
    settings = kept_tuning(default_threads())
    default = core.chosen_kernel(model.folder.kernel_to_run(None), tuning=settings, rows=len(ids)).family
    comparisons = {(name, REFERENCE): v.comparison for name, v in kernels.verdicts.items() if v.comparison is not None}
    found = Verification(str(folder), len(ids), kernels, default, comparisons, notes=notes)
    _judge(found)
    if source is not None:
        source.compare(found, ids, progress)
    return found


def _text_ids(model: fairy2i_runtime.Model, content: str | None, count: int) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Token ids [length] of a text and what is to be said about them."""
    tokenizer_file = model.folder.path / TOKENIZER_FILE
    if content is None:
        ids, known = sample_ids(tokenizer_file, model.tokenizer.encode(DEFAULT_TEXT), count)
        text = "the tokenizer does not know the words of the built-in text: random tokens are used instead"
        return ids, [] if known else [text]
    given = model.tokenizer.encode(content)[:count]
    if len(given) < 2:
        raise OptionError(f"--text: expected at least 2 tokens, found {len(given)}")
    notes = []
    if mostly_unknown(tokenizer_file, given):
        notes.append("--text: the tokenizer knows few of its words, so it shows little of the model")
    return np.array(given, np.int64), notes


def _judge(found: Verification) -> None:
    """What is wrong with exact mode and with the kernel that runs if nobody chooses one; of others the user is told."""
    kernels, default = found.kernels, found.default
    for name, verdict in kernels.verdicts.items():
        if verdict.holds:
            continue
        text = f"kernel {name}: {'; '.join(verdict.problems)}"
        if name in (default, REFERENCE):
            found.problems.append(text)
        else:
            found.notes.append(f"{text}. This model runs {default} unless another is chosen")
    own = kernels.verdicts.get(default)
    others = [name for name in kernels.holding if name != default]
    if own is not None and not own.holds and others:
        found.advice.append(
            f"within the limits is {' and '.join(others)}: run it with --kernel {others[0]} (in other hosts "
            f"FAIRY2I_KERNEL={others[0]}). A conversion with --calibrate finds that out by itself and writes it into the folder"
        )


class _Source:
    """The source of a model. What can be wrong with it is found when it is made, before anything is computed.

    Raises:
        CheckpointError: it lacks a tensor of the model.
        FormatError: the model does not say how it was quantized.
    """

    def __init__(self, weights: SourceWeights, nodes: list[Node]) -> None:
        self.weights, self.nodes, self.name = weights, nodes, weights.checkpoint.name
        if not weights.note:
            for node in nodes:
                weights.tensor_of(node.name)
        if torch_is_installed() and "model.embed_tokens.weight" not in weights.checkpoint:
            raise CheckpointError(
                f"{weights.checkpoint.directory}: expected a tensor model.embed_tokens.weight, found none; give the checkpoint "
                "that the model was exported from"
            )

    def compare(self, found: Verification, ids: npt.NDArray[np.int64], progress: Progress) -> None:
        """Codes against the source's, and logits against torch where it is installed."""
        weights, nodes = self.weights, self.nodes
        found.source = self.name
        found.notes += weights.checkpoint.notes
        if weights.is_other:
            found.notes.append("the model was exported from other files than these (fairy2i.source_sha256 differs)")
        if weights.note:  # codes that are taken from the model would be compared with themselves
            found.notes.append(weights.note)
        else:
            with progress("source", len(nodes), "layers") as advance:
                found.differing = differing = list(weights.differing(nodes, lambda: advance(1)))
            if differing:
                name, reason = differing[0]
                found.problems.append(
                    f"{len(differing)} of {len(nodes)} layers differ from the source, the first is {name}: {reason}"
                )
        if not weights.has_twin:
            found.notes.append(COMPLEX_NOTE)
            return
        if not torch_is_installed():
            found.notes.append("logits were not compared with the source: that needs torch and transformers (extra 'train')")
            return
        with progress("torch", 1, "") as advance:
            reference = torch_logits(weights, nodes, ids)
            advance(1)
        for kernel, logits in found.kernels.logits.items():
            found.logits[kernel, "torch"] = compare(logits, reference, ids)
        exact = found.logits[REFERENCE, "torch"]
        if is_rounded(weights):
            found.notes.append("embedding, lm_head or cache have fewer bits than in the source: logits may differ")
        elif exact.relative_error > LOGITS_LIMIT or exact.top1_agreement < TOP1_LIMIT:
            found.problems.append(
                f"logits of exact mode differ from torch's by {exact.relative_error:.1e} (limit {LOGITS_LIMIT}), the most "
                f"likely token agrees at {exact.top1_agreement:.1%} of the positions (limit {TOP1_LIMIT:.0%})"
            )
