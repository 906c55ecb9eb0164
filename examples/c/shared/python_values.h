/* python_values.h - what is defined in the Python runtime and holds here, too. Written by scripts/host_values.py. */
#ifndef PYTHON_VALUES_H
#define PYTHON_VALUES_H

/* runtime/pyproject.toml: the oldest onnxruntime */
#define OLDEST_ONNXRUNTIME_MAJOR 1
#define OLDEST_ONNXRUNTIME_MINOR 24
#define OLDEST_ONNXRUNTIME_PATCH 4

/* fairy2i chat: how tokens are drawn in a conversation if the model recommends nothing */
#define CHAT_TEMPERATURE 0.4
#define CHAT_TOP_P 0.9
#define CHAT_REPETITION_PENALTY 1.1

#endif
