"""Turn the linear layers of a model into quantizing ones, and back into plain ones with dequantized weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from fairy2i_export.errors import CheckpointError, OptionError
from fairy2i_export.source.weight_files import open_weights
from fairy2i_export.train.qat.modules import QATLinear
from fairy2i_export.train.qat.options import QuantizationOptions, options_of

LM_HEAD = "lm_head"  # the child of that name, as in the published code
LEARNED_KINDS = ("row_multiplier", "scales", "col_multiplier")


@dataclass(frozen=True)
class PrepareReport:
    """What :func:`prepare` did.

    Attributes:
        options: in force.
        replaced: names of the layers that quantize now.
        left: names of the other linear layers, and why.
        untied: names of layers that shared their weight with another module and got a copy.
    """

    options: QuantizationOptions
    replaced: tuple[str, ...]
    left: dict[str, str]
    untied: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.replaced)} linear layers quantize ({self.options.method})"]
        lines += [f"left {name}: {reason}" for name, reason in self.left.items()]
        lines += [f"{name}: no longer shares its weight with another module" for name in self.untied]
        return "\n".join(lines)


def prepare(
    model: nn.Module,
    options: QuantizationOptions | str | None = None,
    *,
    skip_lm_head: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    fit: bool = True,
) -> PrepareReport:
    """Replace the linear layers of ``model`` by :class:`QATLinear`, in place. The state dict keeps its keys.

    Args:
        model: any module; a ``config`` it has notes the options for ``save_pretrained``.
        options: how to quantize; a method's name for its defaults; None for what the model's config says, also about layers
            that are left alone.
        skip_lm_head: leave children called ``lm_head`` alone.
        include: globs on module names; empty for all.
        exclude: likewise.
        fit: find where learned scales and multipliers start; False for who sets them all afterwards.

    Raises:
        OptionError: unknown options, a pattern that matches no linear layer, or nothing to replace.
    """
    if options is None:
        entry = getattr(getattr(model, "config", None), "fairy2i", None) or {}
        options = options_of(entry)
        skip_lm_head = skip_lm_head or entry.get("lm_head", "fairy2i") != "fairy2i"
        exclude = (*exclude, *entry.get("exclude", ()))
    elif isinstance(options, str):
        options = QuantizationOptions(method=options)  # type: ignore[arg-type]
    linears = {name: module for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, nn.Linear)}
    for pattern in (*include, *exclude):
        if not any(fnmatchcase(name, pattern) for name in linears):
            raise OptionError(f"{pattern}: no linear layer has a name like that")
    left = {name: _reason(name, module, options, skip_lm_head, include, exclude) for name, module in linears.items()}
    chosen = [name for name, reason in left.items() if not reason]
    if not chosen:
        raise OptionError(f"no linear layer would be quantized ({'; '.join(sorted(set(left.values())))})")
    others = _weights_of_others(model)
    made: dict[nn.Module, QATLinear] = {}
    untied = []
    for name in chosen:
        linear = linears[name]
        if linear not in made:
            made[linear] = QATLinear.from_linear(linear, options, name, fit=fit)
            if linear.weight in others:
                made[linear].weight = nn.Parameter(linear.weight.detach().clone(), linear.weight.requires_grad)
                untied.append(name)
        model.set_submodule(name, made[linear])
    if untied:
        _note_untied(model, untied)
    report = PrepareReport(options, tuple(chosen), {name: reason for name, reason in left.items() if reason}, tuple(untied))
    if hasattr(model, "config"):
        model.config.fairy2i = config_entry(model)  # type: ignore[union-attr]
    return report


def convert(model: nn.Module) -> nn.Module:
    """Replace every :class:`QATLinear` by an ``nn.Linear`` with the dequantized weight, in place, and return the model.

    The result computes the same and cannot be trained further or exported: quantizing a dequantized weight changes it. A
    ``config`` says so.
    """
    made: dict[nn.Module, nn.Linear] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, QATLinear):
            if module not in made:
                made[module] = module.to_linear()
            model.set_submodule(name, made[module])
    config = getattr(model, "config", None)
    if made and isinstance(getattr(config, "fairy2i", None), dict):
        config.fairy2i = {**config.fairy2i, "latent": False}  # type: ignore[union-attr]
    return model


def load_learned(
    model: nn.Module, directory: str | Path, kinds: Collection[str] = LEARNED_KINDS, layers: Collection[str] | None = None
) -> int:
    """Read learned scales and row multipliers from a checkpoint directory into a prepared model, and return how many.

    ``from_pretrained`` knows nothing of them and leaves them behind: call it, then :func:`prepare`, then this.

    Args:
        model: prepared.
        directory: of the checkpoint.
        kinds: read these only; others stay as computed from the weights.
        layers: names of the layers to read them for; None: all.

    Raises:
        CheckpointError: the model has such parameters that the checkpoint lacks, or of another shape.
    """
    wanted = {
        f"{name}.{kind}": parameter
        for name, module in model.named_modules()
        if isinstance(module, QATLinear) and (layers is None or name in layers)
        for kind, parameter in module.learned().items()
        if kind in kinds
    }
    owners = open_weights(Path(directory)).owners if wanted else {}
    for path in sorted({owners[name].path for name in wanted if name in owners}):
        with safe_open(path, framework="pt") as file:
            for name in sorted(name for name in wanted if name in owners and owners[name].path == path):
                values = file.get_tensor(name)
                if values.shape != wanted[name].shape:
                    raise CheckpointError(
                        f"{path}: {name}: expected shape {tuple(wanted[name].shape)}, found {tuple(values.shape)}"
                    )
                with torch.no_grad():
                    wanted[name].copy_(values)
    if missing := wanted.keys() - owners.keys():
        raise CheckpointError(f"{directory}: {len(missing)} learned tensors are missing, the first is {min(missing)}")
    return len(wanted)


def untie(model: nn.Module) -> tuple[str, ...]:
    """Give an output layer that shares its weight with an embedding a copy; returns the names of such layers."""
    others, untied = _weights_of_others(model), []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and is_lm_head(name) and module.weight in others:
            module.weight = nn.Parameter(module.weight.detach().clone(), module.weight.requires_grad)
            untied.append(name)
    if untied:
        _note_untied(model, untied)
    return tuple(untied)


def config_entry(model: nn.Module | QuantizationOptions) -> dict[str, Any]:
    """The entry ``fairy2i`` of config.json, which the exporter reads: of a prepared model, or of options alone.

    Raises:
        OptionError: the model has no quantizing layer, or layers that differ.
    """
    if isinstance(model, QuantizationOptions):
        return _entry(model, True, [])
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QATLinear)}
    options = {module.options for module in layers.values()}
    if len(options) != 1:
        raise OptionError(
            f"expected a model whose quantizing layers have the same options, found {len(options)} kinds; call prepare first"
        )
    plain = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not isinstance(module, QATLinear)
        and not (module.in_features % 2 or module.out_features % 2)
    ]
    heads = [name for name in layers if is_lm_head(name)]
    return _entry(options.pop(), bool(heads), [name for name in plain if not is_lm_head(name)])


def _entry(options: QuantizationOptions, lm_head: bool, exclude: Sequence[str]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "method": options.method,
        "profile": options.profile,
        "quantizer": options.quantizer,
        "row_multiplier": options.row_multiplier,
        "scales": "learned" if options.learned_scales else "computed",
        "lm_head": "fairy2i" if lm_head else "float",
        "latent": True,
    }
    if options.method == "fairy2i":
        entry["stages"] = options.stages
    if options.activation_bits is not None:
        entry["activation_bits"] = options.activation_bits
    if options.col_multiplier != "none":
        entry["col_multiplier"] = options.col_multiplier
    if exclude:
        entry["exclude"] = list(exclude)
    return entry


def is_lm_head(name: str) -> bool:
    """Whether a module of that name counts as output layer."""
    return name.rpartition(".")[2] == LM_HEAD


def _reason(
    name: str,
    module: nn.Linear,
    options: QuantizationOptions,
    skip_lm_head: bool,
    include: Sequence[str],
    exclude: Sequence[str],
) -> str:
    """Why a linear layer is left as it is; empty if it is not."""
    if isinstance(module, QATLinear):
        return "quantizes already"
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "its parent uses the weight without calling it"
    if skip_lm_head and is_lm_head(name):
        return "skip_lm_head"
    if include and not any(fnmatchcase(name, pattern) for pattern in include):
        return "not in include"
    if any(fnmatchcase(name, pattern) for pattern in exclude):
        return "exclude"
    if options.method == "fairy2i" and (module.in_features % 2 or module.out_features % 2):
        return f"odd dimension ({module.out_features} x {module.in_features})"
    return ""


def _weights_of_others(model: nn.Module) -> set[nn.Parameter]:
    """Parameters of modules that are not linear layers: embeddings that a lm_head may share its weight with."""
    modules = [module for module in model.modules() if not isinstance(module, nn.Linear)]
    return {parameter for module in modules for parameter in module.parameters(recurse=False)}


def _note_untied(model: nn.Module, names: Sequence[str]) -> None:
    """Tell transformers that these weights are their own, or it would leave them out of the checkpoint and tie them again."""
    for config in (getattr(model, "config", None), getattr(getattr(model, "config", None), "text_config", None)):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False  # type: ignore[union-attr]
    for module in model.modules():
        tied = getattr(module, "all_tied_weights_keys", None)
        if isinstance(tied, dict):
            for key in [key for key in tied if any(f"{name}.weight".endswith(key) for name in names)]:
                del tied[key]
