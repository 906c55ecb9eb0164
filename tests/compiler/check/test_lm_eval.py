"""The lm-eval model class against lm_eval's own Hugging Face model on the same quantized weights, and the command."""

from __future__ import annotations

import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from fairy2i_export.commands.tools import main
from runtime_models import CHECKPOINT, chat_folder, copy_of_stories, stories_folder

pytest.importorskip("lm_eval")
pytest.importorskip("torch")
pytest.importorskip("transformers")

from lm_eval.api.instance import Instance

from fairy2i_export.check.lm_eval import Fairy2iLM
from fairy2i_runtime.errors import Fairy2iRuntimeError

STORIES = (ROOT / "examples/data/tinystories/tinystories_sample.txt").read_text(encoding="utf-8").split("<|endoftext|>")
CONTEXT = "Once upon a time, there was a little girl named"
PAIRS = [
    (CONTEXT, " Lily"),
    (CONTEXT, " Tom. He liked trains"),
    (CONTEXT + " ", "Lily"),  # a space at the end of the context belongs to the continuation
    ("", "Once upon a time"),
    ("The dog", " ran to the park"),
    (STORIES[0].strip() * 2, " The end"),  # longer than the context: loses its beginning
]


@pytest.fixture(scope="module")
def ours() -> Fairy2iLM:
    return Fairy2iLM(str(stories_folder()), kernel="exact", batch_size="1", device="cuda:0")


@pytest.fixture(scope="module")
def twin() -> Any:
    """lm_eval's HFLM with the dequantized weights."""
    import transformers
    from lm_eval.models.huggingface import HFLM

    from fairy2i_export.check.source_weights import SourceWeights, torch_model
    from fairy2i_export.output.contract.nodes import read_nodes
    from fairy2i_export.source.checkpoint import open_checkpoint
    from fairy2i_runtime import load

    folder = stories_folder()
    file = folder / "model.onnx"
    model = torch_model(SourceWeights(open_checkpoint(CHECKPOINT), file, load(folder).metadata), read_nodes(file))
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", device="cpu", max_length=512, batch_size=1)


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


def test_loglikelihood(ours: Fairy2iLM, twin: Any) -> None:
    found = ours.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    expected = twin.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], rel=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert {greedy for _, greedy in found} == {True, False}


def test_loglikelihood_rolling_over_several_windows(ours: Fairy2iLM, twin: Any) -> None:
    texts = [(STORIES[0].strip(),), ("\n".join(STORIES),), ("Hi",)]
    assert len(ours.tok_encode(texts[1][0])) > 3 * 512
    found = ours.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True)
    expected = twin.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True)
    assert found == pytest.approx(expected, rel=1e-5)


def test_generate_until(ours: Fairy2iLM, twin: Any) -> None:
    asked = [
        (CONTEXT, {"until": ["."], "max_gen_toks": 40}),
        (CONTEXT, {"until": "park", "do_sample": False, "temperature": 0.0, "max_gen_toks": 40}),
        ("The dog", {"until": [], "max_gen_toks": 20}),
        (STORIES[0].strip() * 2, {"until": ["\n"], "max_gen_toks": 16}),
    ]
    found = ours.generate_until(requests("generate_until", asked), disable_tqdm=True)
    expected = twin.generate_until(requests("generate_until", asked), disable_tqdm=True)
    assert found == expected
    assert all(found)
    assert "." not in found[0]


def test_shared_beginnings_are_run_once(ours: Fairy2iLM, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, counted = ours.model.decoder, []
    run = type(decoder)._run

    def counting(self: Any, tokens: Any, *rest: Any) -> Any:
        counted.append(len(tokens))
        return run(self, tokens, *rest)

    monkeypatch.setattr(type(decoder), "_run", counting)
    ours._cache.truncate(0)
    answers = [(CONTEXT, f" {name}") for name in ("Lily", "Tom", "Sue", "Ben")]
    ours.loglikelihood(requests("loglikelihood", answers), disable_tqdm=True)
    assert sum(counted) < len(ours.tok_encode(CONTEXT)) + 4 * 6


def test_sampling_and_chat_templates(tmp_path: Path) -> None:
    model = Fairy2iLM(str(chat_folder(tmp_path / "chat")), max_length=128)
    talk = model.apply_chat_template([{"role": "user", "content": "Hello."}])
    assert talk.startswith("<s>[user] Hello.")
    assert model.tok_encode(talk).count(model.prefix_token_id) == 1  # not a second one
    assert model.chat_template(True)
    assert model.chat_template() is None
    options = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 0.9, "top_k": 20, "seed": 4}
    first, second = (model.generate_until(requests("generate_until", [(CONTEXT, options)]), True) for _ in range(2))
    assert first == second


def test_variables_of_chat_templates(tmp_path: Path) -> None:
    """Given as to lm_eval's own models; the text is that of transformers."""
    import transformers

    folder = copy_of_stories(tmp_path / "chat")
    (folder / "chat_template.jinja").write_text(
        "{{ messages[0].content }}{{ ' quietly' if enable_thinking is false }} {{ style | default('plain') }}"
    )
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    talk = [{"role": "user", "content": "Hello."}]
    names = set()
    for given in ({}, {"enable_thinking": False}, {"style": "brief"}, {"style": "brief", "enable_thinking": False}):
        thinking, others = given.get("enable_thinking"), {k: v for k, v in given.items() if k != "enable_thinking"}
        model = Fairy2iLM(str(folder), max_length=64, enable_thinking=thinking, chat_template_args=others)
        expected = theirs.apply_chat_template(talk, tokenize=False, add_generation_prompt=True, **given)
        assert model.apply_chat_template(talk) == expected
        names.add(model.tokenizer_name)
    assert len(names) == 4  # texts that differ are not taken from lm_eval's cache of requests
    with pytest.raises(
        Fairy2iRuntimeError, match=r"^chat_template_args: the chat template knows no 'thinking'; it takes: enable"
    ):
        Fairy2iLM(str(folder), chat_template_args={"thinking": False})
    with pytest.raises(Fairy2iRuntimeError, match=r"^enable_thinking: the model has no chat template"):
        Fairy2iLM(str(stories_folder()), enable_thinking=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_beams": 3, "do_sample": True, "temperature": 1.0}, "num_beams"), ({"max_gen_toks": 512}, "max_gen_toks")],
)
def test_generation_options_that_cannot_be_met(ours: Fairy2iLM, options: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        ours.generate_until(requests("generate_until", [(CONTEXT, {"until": [], **options})]), True)


TASKS = {
    "stories_ppl.yaml": """
task: stories_ppl
dataset_path: json
dataset_kwargs: {data_files: {test: STORIES}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
""",
    "names.yaml": """
task: names
dataset_path: json
dataset_kwargs: {data_files: {test: NAMES}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
}


def test_tasks_run_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tiny tasks of our own, found and run by lm_eval: a perplexity and a multiple choice, zero-shot."""
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = {
        "STORIES": [{"text": story.strip()} for story in STORIES if story.strip()],
        "NAMES": [
            {"text": CONTEXT, "choices": [" Lily", " banana", " the"], "label": 0},
            {"text": "She loved to play outside in the", "choices": [" not", " park", " was"], "label": 1},
        ],
    }
    for name, rows in data.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        for key in data:
            text = text.replace(f": {key}", f": {tmp_path / key}.jsonl")
        (tmp_path / name).write_text(text)
    # lm_eval's own 13,000 tasks take ten seconds to list
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model="fairy2i",
        model_args=f"path={stories_folder()},threads=1,kernel=exact",
        tasks=["stories_ppl", "names"],
        task_manager=manager,
        bootstrap_iters=0,
    )
    assert found["results"]["names"]["acc,none"] == 1.0
    stories = [(row["text"],) for row in data["STORIES"]]
    ours = Fairy2iLM(str(stories_folder()), kernel="exact")
    total = sum(ours.loglikelihood_rolling(requests("loglikelihood_rolling", stories), disable_tqdm=True))
    size = sum(len(story.encode()) for (story,) in stories)
    assert found["results"]["stories_ppl"]["bits_per_byte,none"] == pytest.approx(-total / size / math.log(2), rel=1e-6)


@pytest.mark.parametrize("arguments", [["--model", "fairy2i", "--tasks", "x", "--limit", "3"], ["ls", "tasks"], ["-h"]])
def test_the_command_hands_everything_to_lm_eval(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    import lm_eval.__main__
    from lm_eval.api.registry import get_model

    seen: list[list[str]] = []
    monkeypatch.setattr(lm_eval.__main__, "cli_evaluate", lambda: seen.append(sys.argv))
    before = sys.argv
    assert main(["lm-eval", *arguments]) == 0
    assert seen == [["lm-eval", *arguments]]
    assert sys.argv is before
    assert get_model("fairy2i") is Fairy2iLM


def test_a_folder_that_does_not_exist() -> None:
    with pytest.raises(Fairy2iRuntimeError, match="/absent does not exist"):  # the command line prints the message
        Fairy2iLM("/absent")
