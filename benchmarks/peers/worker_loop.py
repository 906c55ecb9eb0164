"""The loop of a worker: it waits for requests on standard input, sleeping, and answers on standard output, in lines of JSON.

Needs nothing but Python, as a worker may run in an environment of its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

Run = Callable[[list[int], int], tuple[float, float]]  # prompt, new tokens -> seconds to the first one, and of the others


def serve(start: Callable[[], tuple[dict[str, Any], Run]]) -> None:
    """Answer until standard input is closed.

    The first line says what ``start`` returned beside the function, or ``{"error": message}``. A request is
    ``{"prompt": token ids, "new": count}``; the answer has the seconds ``first`` and ``rest``, and ``idle``: processor seconds of
    all threads since the last answer, in which this process should have slept.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        ready, run = start()
    except Exception as error:
        say({"error": " ".join(str(error).split()) or repr(error)})
        return
    say(ready)
    slept = time.process_time()
    for line in sys.stdin:
        idle = time.process_time() - slept
        request = json.loads(line)
        first, rest = run(request["prompt"], request["new"])
        slept = time.process_time()
        say({"first": first, "rest": rest, "idle": idle})
