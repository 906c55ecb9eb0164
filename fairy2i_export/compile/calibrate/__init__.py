"""Conversion without training: ``fairy2i-export SOURCE --calibrate TEXT``.

Plain rounding destroys a model that was not trained for it. Here the model reads a text, and every linear layer gets the codes
that keep its outputs on that text: second-order error feedback (metric.py, feedback.py), scales and row multipliers fitted in
the same metric (fit.py), decoder layer by decoder layer, each seeing what the quantized layers before it produce (walk.py).

Needs torch and transformers (extra ``train``); the modules import them inside functions, so that importing costs nothing.
"""
