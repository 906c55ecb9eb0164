"""Write a trained stories260K as a Hugging Face directory: latent weights, configuration, tokenizer, log and model card."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from stories260k import CHECKPOINT, model_config, read_checkpoint, write_json, write_tokenizer
from torch import Tensor


def save(weights: dict[str, Tensor], log: dict[str, Any], out: Path) -> None:
    """Write the directory ``out``, all of it or nothing.

    Args:
        weights: the latent weights in bfloat16 under their Hugging Face names.
        log: the log of the run, see ``train_stories.train``.
        out: the directory; an earlier one is replaced.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    shape, _ = read_checkpoint(CHECKPOINT)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        config = {
            **model_config(shape),
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "fairy2i": {
                "stages": log["options"]["stages"],
                "profile": log["options"]["profile"],
                "row_multiplier": log["options"]["row_multiplier"],
                "lm_head": "fairy2i",
                "latent": True,
            },
        }
        write_json(partial / "config.json", config)
        write_tokenizer(partial, shape)
        save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
        (partial / "training_log.json").write_text(_log_text(log), encoding="utf-8")
        (partial / "README.md").write_text(_model_card(log), encoding="utf-8")
        partial.chmod(0o755)  # mkdtemp and safetensors make private files
        (partial / "model.safetensors").chmod(0o644)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _log_text(log: dict[str, Any]) -> str:
    """The log as JSON with one line per entry and per evaluation."""

    def text(value: Any, indent: str) -> str:
        if isinstance(value, dict) and "steps" in value:
            entries = ",\n".join(f"{indent}  {json.dumps(key)}: {text(item, indent + '  ')}" for key, item in value.items())
            return f"{{\n{entries}\n{indent}}}"
        if isinstance(value, list):
            return "[\n" + ",\n".join(f"{indent}  {json.dumps(item)}" for item in value) + f"\n{indent}]"
        return json.dumps(value)

    return text(log, "") + "\n"


def _model_card(log: dict[str, Any]) -> str:
    """README.md of the saved directory."""
    options = log["options"]
    return f"""# stories260K, Fairy2i W{options["stages"]}

A LLaMA with 264 thousand parameters that tells simple children's stories. It is karpathy's stories260K after
quantization-aware training: every linear layer computes with weights out of sums of {options["stages"]} of the numbers
{{+1, -1, +i, -i}} times a few scales (multiplier per output row: {options["row_multiplier"]}). This directory holds the latent
weights in bfloat16, from which `fairy2i-export` computes those codes.

| | nats per token, held-out stories |
|---|---|
| float model | {log["eval_loss_float"]:.3f} |
| quantized without training | {log["eval_loss_untrained"]:.3f} |
| quantized after training | {log["eval_loss_trained"]:.3f} |

Made by `examples/stories/train_stories.py`; the run is recorded in training_log.json, the method in docs/training-stories.md.

Licence: MIT, as the original weights (examples/data/stories260K/LICENSE.llama2.c). Training used stories written by the
original model and an excerpt of TinyStories (roneneldan/TinyStories, CDLA-Sharing-1.0).
"""
