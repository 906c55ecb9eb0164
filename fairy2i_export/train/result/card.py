"""README.md of a trained model: what it is, how it was made, how to go on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fairy2i_export.train.recipe import Recipe

_CARD = """# {title}

{what}

Trained from `{source}` with `fairy2i train` ({versions}). The weights here are the latent ones{latent}. The licence of the
source applies to them.

| | |
|---|---|
| method | {method} |
| layers | {layers} |
| data | {data} |
| tokens, steps | {tokens:,}, {steps:,} |
| sequences per step | {batch} of {length} tokens |
| learning rate, schedule | {rate}, {schedule} |
| AdamW | betas {betas}, weight decay {decay}, gradient norm at most {clip} |
| loss | {loss} |
| seed | {seed} |
{results}
![training curves](curves.png)

`recipe.json` holds every option, `training_log.json` every logged value.

## Use it

```
{use}
```
"""


def model_card(recipe: Recipe, facts: dict[str, Any], entry: dict[str, Any] | None) -> str:
    """The Markdown text.

    Args:
        recipe: of the run.
        facts: steps, tokens, batch, length, layers (text), versions (text); eval_loss_before, eval_loss_final (or None).
        entry: config.json's ``fairy2i``; None for a float model.
    """
    title = recipe.output.resolve().name
    fairy2i = entry is not None and entry["method"] == "fairy2i"
    if entry is None:
        what, method = "A float model, for comparisons.", "float"
    elif fairy2i:
        what = (
            f"A language model trained for {entry['stages']}-bit Fairy2i weights: every weight of its quantized layers is a sum "
            f"of {entry['stages']} complex numbers out of {{+1, -1, +i, -i}}, each with its scale (arXiv 2512.02901)."
        )
        method = ", ".join(f"{key} {value}" for key, value in entry.items() if key not in ("exclude", "latent"))
    else:
        what = f"A language model trained with {entry['method']} weights, a baseline to compare Fairy2i with."
        method = str(entry["method"])
    rate = f"{recipe.learning_rate:g}"
    if recipe.float_learning_rate is not None:
        rate += f" ({recipe.float_learning_rate:g} for what stays float)"
    loss = "cross entropy" if recipe.distill < 1 else ""
    if recipe.distill:
        share = (
            f"{recipe.distill:g} x divergence from {recipe.teacher or recipe.source} at temperature {recipe.temperature:g}"
        )
        loss = f"{1 - recipe.distill:g} x cross entropy + {share}" if loss else share
    name = f"{title}-onnx"
    return _CARD.format(
        title=title,
        what=what,
        source=recipe.source,
        versions=facts["versions"],
        latent=", which the exporter quantizes exactly as training did" if fairy2i else "",
        method=method,
        layers=facts["layers"],
        data=", ".join(map(_name, recipe.data))
        or f"{recipe.teacher_text:,} tokens written by {recipe.teacher or recipe.source}",
        tokens=facts["tokens"],
        steps=facts["steps"],
        batch=facts["batch"],
        length=facts["length"],
        rate=rate,
        schedule=recipe.schedule,
        betas=" ".join(map(str, recipe.betas)),
        decay=recipe.weight_decay,
        clip=recipe.clip,
        loss=loss,
        seed=recipe.seed,
        results=_results(recipe, facts),
        use=f'fairy2i-export . -o ../{name}\nfairy2i generate ../{name} "Once upon a time"' if fairy2i else _PLAIN,
    )


_PLAIN = (
    '# transformers: AutoModelForCausalLM.from_pretrained("."); fairy2i-export compiles models of the method fairy2i only'
)


def _name(data: str) -> str:
    """Where a file lies is nobody's business."""
    return data if data.startswith("hf:") else Path(data).name


def _results(recipe: Recipe, facts: dict[str, Any]) -> str:
    rows = [
        f"| {label} | {facts[key]:.4f} nats/token, perplexity {math.exp(min(facts[key], 700)):.2f} |"
        for key, label in (("eval_loss_before", "before training"), ("eval_loss_final", "after, weights as stored"))
        if facts.get(key) is not None
    ]
    if not rows:
        return ""
    return (
        f"\nOn {', '.join(map(_name, recipe.eval_data))}, blocks of {facts['length']} tokens:\n\n| | |\n|---|---|\n"
        + "\n".join(rows)
        + "\n"
    )
