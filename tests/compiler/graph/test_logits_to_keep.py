"""num_logits_to_keep: a host that asks for the last logits gets those it would get anyway, and the others are not computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

import fairy2i_runtime
from architecture_helpers import MIXED, exact_session, random_ids, save_tiny
from export_helpers import cache_shapes
from fairy2i_export import export, rewrite_onnx
from fairy2i_runtime.measure.scoring import score_tokens
from fairy2i_runtime.model import Model, load
from runtime_models import CHECKPOINT, copy_of_stories, earlier_form, stories_folder

TOKENS = [1, *(token % 500 + 5 for token in range(0, 7 * 300, 7))]  # of three runs
INPUT = "num_logits_to_keep"


@pytest.fixture(scope="module")
def model() -> Model:
    return load(stories_folder(), threads=1)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(earlier_form(copy_of_stories(tmp_path_factory.mktemp("earlier") / "model")), threads=1)


def run(session: ort.InferenceSession, ids: npt.NDArray[np.int64], mask: Any = None, **more: Any) -> list[Any]:
    types = {item.name: np.float16 if item.type == "tensor(float16)" else np.float32 for item in session.get_inputs()}
    past = {name: np.zeros((len(ids), heads, 0, size), types[name]) for name, (heads, size) in cache_shapes(session).items()}
    found: list[Any] = session.run(
        None, {"input_ids": ids, "attention_mask": np.ones_like(ids) if mask is None else mask, **past, **more}
    )
    return found


def test_the_input_need_not_be_given_and_is_not_listed_as_one_that_must() -> None:
    session = exact_session(stories_folder())
    assert INPUT not in [item.name for item in session.get_inputs()]
    assert [(item.name, item.type, item.shape) for item in session.get_overridable_initializers()] == [
        (INPUT, "tensor(int64)", [1])
    ]


@pytest.mark.parametrize(
    ("kind", "settings", "options"),
    [
        pytest.param("llama", {}, {}, id="llama"),
        pytest.param("gemma2", {"sliding_window": 6, "query_pre_attn_scalar": 16}, {}, id="norms behind blocks, capped"),
        pytest.param("olmo2", {}, {"kv_cache": "float16"}, id="no norm before attention, float16 cache"),
        pytest.param("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, {}, id="fused"),
        pytest.param("qwen3", {**MIXED, "use_sliding_window": True}, {"lm_head": "float"}, id="a float lm_head"),
        pytest.param("llama", {}, {"backend": "matmulnbits", "lm_head": "int8"}, id="matmulnbits"),
        pytest.param("llama", {"num_hidden_layers": 1}, {"backend": "dense"}, id="a single layer, dense"),
    ],
)
@pytest.mark.parametrize("padding", ["none", "left", "right"])
def test_the_last_logits_are_those_of_all(
    kind: str, settings: dict[str, Any], options: dict[str, Any], padding: str, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    save_tiny(tmp_path / "source", kind, **settings)
    export(tmp_path / "source", tmp_path / "out", **options)
    session = exact_session(tmp_path / "out")
    ids = random_ids(3, 12)
    mask = np.ones_like(ids)
    if padding != "none":
        for row, length in enumerate((0, 4, 7)):
            mask[row, slice(length) if padding == "left" else slice(12 - length, 12)] = 0
    everything, *cache = run(session, ids, mask)
    assert everything.shape[1] == 12
    for keep in (0, 1, 3, 12, 13, 1 << 40):
        logits, *rest = run(session, ids, mask, **{INPUT: np.array([keep])})
        kept = min(keep, 12) or 12
        assert logits.shape == (3, kept, everything.shape[2])
        largest = np.abs(everything).max()
        np.testing.assert_allclose(logits, everything[:, -kept:], rtol=0, atol=1e-5 * largest)
        for found, expected in zip(rest, cache, strict=True):
            np.testing.assert_array_equal(found, expected)  # of every token, however few logits are wanted


def test_what_is_not_wanted_is_not_computed() -> None:
    """The feed-forward network of the last layer and lm_head see one row of a prompt."""
    graph = onnx.load(stories_folder() / "model.onnx", load_external_data=False)
    last = "model.layers.4.mlp.down_proj"
    for name in (last, "lm_head"):
        node = next(node for node in graph.graph.node if node.name == name)
        graph.graph.output.append(onnx.helper.make_tensor_value_info(node.input[0], 1, None))
    options = ort.SessionOptions()
    fairy2i_runtime.register(options)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(stories_folder()))
    session = ort.InferenceSession(graph.SerializeToString(), options)
    ids = np.array([TOKENS[:20]])
    assert [x.shape[1] for x in run(session, ids, **{INPUT: np.array([1])})[-2:]] == [1, 1]
    assert [x.shape[1] for x in run(session, ids)[-2:]] == [20, 20]


def test_the_runtime_asks_for_what_it_needs(model: Model, earlier: Model) -> None:
    assert (model.decoder.selects, earlier.decoder.selects) == (True, False)
    expected = earlier.logits(TOKENS)
    for decoder in (model.decoder, earlier.decoder):
        cache = decoder.new_cache()
        np.testing.assert_array_equal(decoder.next_logits(TOKENS, cache), expected[-1])
        assert cache.tokens == TOKENS
        np.testing.assert_array_equal(decoder.all_logits(TOKENS, decoder.new_cache()), expected)
        for last in (1, 2, 44, 45, 46, 127, 128, 129, 173, 300, 301, 1000):
            found = decoder.all_logits(TOKENS, decoder.new_cache(), last=last)
            np.testing.assert_array_equal(found, expected[-last:])


@pytest.mark.parametrize("first", [1, 2, 100, 128, 129, 130, 300])
def test_scores_do_not_depend_on_which_logits_are_computed(model: Model, earlier: Model, first: int) -> None:
    ours, theirs = (score_tokens(each.decoder, TOKENS, first) for each in (model, earlier))
    np.testing.assert_array_equal(ours.log_probs, theirs.log_probs)
    np.testing.assert_array_equal(ours.greedy, theirs.greedy)


def test_texts_of_folders_of_earlier_versions(model: Model, earlier: Model) -> None:
    prompts = [TOKENS[:3], TOKENS[:50], TOKENS[:17], TOKENS[:50]]
    alone = [model.generate(prompt, max_new_tokens=30).token_ids for prompt in prompts]
    assert [earlier.generate(prompt, max_new_tokens=30).token_ids for prompt in prompts] == alone
    for each in (model, earlier):
        assert [result.token_ids for result in each.generate_batch(prompts, max_new_tokens=30)] == alone


def test_a_rewrite_keeps_it(tmp_path: Path) -> None:
    export(CHECKPOINT, tmp_path / "part", exclude=["lm_head", "*mlp*"])
    rewrite_onnx(tmp_path / "part" / "model.onnx", tmp_path / "out")
    rewritten = load(tmp_path / "out", threads=1)
    assert rewritten.decoder.selects
    np.testing.assert_array_equal(
        rewritten.decoder.next_logits(TOKENS, rewritten.decoder.new_cache()), rewritten.logits(TOKENS)[-1]
    )
