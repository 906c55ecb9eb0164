"""``fairy2i inspect``: what an exported model holds, read from the file alone."""

from __future__ import annotations

from fairy2i_export.inspection.facts import LayerFacts, ModelFacts, layer_facts, model_facts

__all__ = ["LayerFacts", "ModelFacts", "layer_facts", "model_facts"]
