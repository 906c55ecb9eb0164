"""What hypothesis makes for readers of JSON: values of any form, and sound ones in which something is exchanged."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SOME = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


FEW = settings(SOME, max_examples=40)


TEXTS = st.text(max_size=12) | st.sampled_from(["", "\0", "\ud800", "../x", "/", "a\x1b[31m", "x" * 300, "é" * 200])


NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([0, -1, 1, 10**8, 2**31, 2**63, 1e308, -0.0])


SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS


JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=8
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a JSON value are, as keys and indices."""
    yield at
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value[:5]):
            yield from places(item, (*at, key))


def changed(sound: Any) -> st.SearchStrategy[Any]:
    """The value with one to three of its parts exchanged, left out or doubled."""
    parts = [place for place in places(sound) if place]

    @st.composite
    def change(draw: st.DrawFn) -> Any:
        value = copy.deepcopy(sound)
        for place in draw(st.lists(st.sampled_from(parts), min_size=1, max_size=3)):
            parent = value
            try:
                for key in place[:-1]:
                    parent = parent[key]
                kind = draw(st.sampled_from(["other", "other", "gone", "added"]))
                if kind == "gone":
                    del parent[place[-1]]
                elif kind == "added" and isinstance(parent, dict):
                    parent[draw(TEXTS)] = draw(JSON)
                else:
                    parent[place[-1]] = draw(JSON)
            except (KeyError, IndexError, TypeError):  # of an earlier change
                continue
        return value

    return change()


def written(value: Any) -> bytes:
    """As JSON, lone surrogates as escapes, NaN and Infinity as Python writes them."""
    return json.dumps(value).encode()
