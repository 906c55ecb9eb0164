"""Fairy2i models in lm-eval (EleutherAI's Language Model Evaluation Harness), run by ONNX Runtime.

Importing this package registers the model ``fairy2i`` with lm_eval. lm_eval itself looks for models in its own package only,
so its command line is started from here: ``fairy2i lm-eval --model fairy2i --model_args path=DIR --tasks ...``, or
``python -m fairy2i_export.lm_eval_model`` with the same arguments.
"""

from __future__ import annotations

from fairy2i_export.check.lm_eval.model import Fairy2iLM

__all__ = ["Fairy2iLM"]
