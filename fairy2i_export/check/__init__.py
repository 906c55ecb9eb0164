"""Looks at a folder that exists: layers, logits and perplexity against independent computations, facts, the report's page."""
