"""The bodies that atheris fuzzes (tests/helpers/fuzz), with some hundred changed files each and without atheris."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.bodies import BODIES, body


@pytest.mark.parametrize("name", BODIES)
def test_sound_files_are_read(name: str) -> None:
    target = body(name)
    assert all(target(seed) for seed in target.seeds())
    assert [(target.folder / file).read_bytes() for file in target.names] == target.sound


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.usefixtures("quiet")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), numbers=st.lists(st.integers(0, 2**32), min_size=1, max_size=4))
def test_changed_files_are_read_or_one_error(name: str, data: st.DataObject, numbers: list[int]) -> None:
    target = body(name)
    changed = data.draw(st.sampled_from(target.seeds()))
    for number in numbers:
        changed = target.mutated(changed, random.Random(number))
    target(changed)


LONG, INDEX = b"x" * 300, "model.safetensors.index.json"
FAILED_ONCE = {
    "a class that is a list": ("checkpoint", "config.json", b'{"architectures": [[]]}'),
    "a kind that is a list": ("checkpoint", "config.json", b'{"model_type": [{}]}'),
    "weights of a long name": ("checkpoint", "config.json", b'{"transformers_weights": "%s.safetensors"}' % LONG),
    "a shard of a long name": ("checkpoint", INDEX, b'{"weight_map": {"a": "%s.safetensors"}}' % LONG),
    "a model of a long name": ("folder", "genai_config.json", b'{"model": {"decoder": {"filename": "%s"}}}' % LONG),
}


@pytest.mark.parametrize("case", FAILED_ONCE)
def test_what_failed_once(case: str) -> None:
    name, file, contents = FAILED_ONCE[case]
    target = body(name)
    assert not target(bytes([target.names.index(file)]) + contents)
