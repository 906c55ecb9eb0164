"""Fuzz one of the bodies with atheris.

    python tests/helpers/fuzz/run.py onnx|checkpoint|folder CORPUS [options of libFuzzer, or files]

Sound inputs are put into the folder CORPUS, and inputs that reach new code are kept there. Given files instead, it runs those.
"""

from __future__ import annotations

import logging
import random
import sys
from pathlib import Path

import atheris

HELPERS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HELPERS), str(HELPERS / "models")]
with atheris.instrument_imports(include=["fairy2i_export", "fairy2i_runtime"]):
    from fuzz.bodies import BODIES, MOST, body


def main(arguments: list[str]) -> None:
    """Never returns: libFuzzer ends the process."""
    if len(arguments) < 2 or arguments[0] not in BODIES:
        sys.exit(f"usage: run.py {'|'.join(BODIES)} CORPUS [options of libFuzzer]")
    name, corpus = arguments[0], Path(arguments[1])
    logging.disable(logging.CRITICAL)  # onnx_ir's own
    target = body(name)
    seeds = target.seeds()
    if not corpus.is_file():
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds):
            (corpus / f"sound-{number}").write_bytes(seed)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        dice = random.Random(seed)
        if not dice.randrange(4):
            data = dice.choice(seeds)  # sound files reach the same code, of which libFuzzer keeps but the shortest
        changed = target.mutated(data, dice) if dice.randrange(4) else atheris.Mutate(data, most)
        return changed[:most]

    atheris.Setup(
        [sys.argv[0], *arguments[1:], f"-max_len={MOST}"], lambda data: target(data) and None, custom_mutator=mutate
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
