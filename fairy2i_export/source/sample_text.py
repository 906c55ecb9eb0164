"""A short English text, for what has to see a model at work: verification, and the scales of an int8 cache."""

from __future__ import annotations

DEFAULT_TEXT = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her dog. One day, she "
    "saw a big red ball under a tree. She wanted to play with it, but a bird sat on it and did not want to move. Lily asked "
    "the bird to share, and the bird was happy to help. They played until the sun went down, and then they went home. Her mom "
    "was glad to see them and gave them a warm dinner. From that day on they met in the park every morning and became friends."
)
