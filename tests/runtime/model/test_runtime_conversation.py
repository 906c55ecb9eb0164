"""Conversations: the cache is kept across turns and changes nothing but the time."""

from __future__ import annotations

from operator import eq

import pytest

from fairy2i_runtime import Model, load
from fairy2i_runtime.errors import ChatTemplateError, ContextError, OptionError, RunError
from runtime_models import FailingSession, chat_folder, stories_folder

OPTIONS = {"max_new_tokens": 25}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return load(chat_folder(tmp_path_factory.mktemp("chat") / "model"), kernel="exact")


def test_every_turn_equals_a_fresh_start(model):
    talk = model.conversation("Be kind.")
    for question in ("Tell me of a cat.", "And the dog?", "What then?"):
        result = talk.ask(question, **OPTIONS)
        fresh = model.chat(talk.messages[:-1], **OPTIONS)
        assert (result.text, result.token_ids) == (fresh.text, fresh.token_ids)
        assert talk.messages[-1] == {"role": "assistant", "content": result.text}
    assert [message["role"] for message in talk.messages] == ["system", *["user", "assistant"] * 3]


def test_later_turns_run_new_tokens_only(model):
    talk = model.conversation()
    first = talk.ask("Tell me of a cat.", **OPTIONS)
    assert first.timings.cached_tokens == 0
    before = talk.tokens
    second = talk.ask("And the dog?", **OPTIONS)
    whole = model.tokenizer.encode(model.chat_template.render(talk.messages[:-1]), add_special_tokens=False)
    assert second.timings.cached_tokens + second.timings.prompt_tokens == len(whole)
    # what is reused ends where tokenizing the answer anew differs from how the model spelled it, not before
    assert second.timings.cached_tokens == [*map(eq, before, whole), False].index(False)
    assert second.timings.cached_tokens >= first.timings.prompt_tokens - 1
    assert talk.tokens[: len(whole)] == whole


def test_a_changed_history_rewinds_the_cache(model):
    talk = model.conversation()
    talk.ask("Tell me of a cat.", **OPTIONS)
    talk.messages[0]["content"] = "Tell me of a bird."
    result = talk.ask("And then?", **OPTIONS)
    assert result.token_ids == model.chat(talk.messages[:-1], **OPTIONS).token_ids


def test_reset_forgets_all_but_the_system_message(model):
    talk = model.conversation("Be kind.")
    first = talk.ask("Tell me of a cat.", **OPTIONS)
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "Be kind."}]
    assert talk.ask("Tell me of a cat.", **OPTIONS).text == first.text


def test_two_conversations_do_not_disturb_each_other(model):
    one, two = model.conversation(), model.conversation()
    first = one.stream("Tell me of a cat.", **OPTIONS)
    second = two.stream("Where is the ball?", **OPTIONS)
    pieces: list[list[str]] = [[], []]
    for _ in range(10):
        for stream, into in ((first, pieces[0]), (second, pieces[1])):
            piece = next(stream, None)
            if piece is not None:
                into.append(piece)
    expected = [
        model.chat([{"role": "user", "content": text}], **OPTIONS).text
        for text in ("Tell me of a cat.", "Where is the ball?")
    ]
    assert expected[0].startswith("".join(pieces[0]))
    assert expected[1].startswith("".join(pieces[1]))
    first.close()
    second.close()


def test_an_interrupted_answer_is_remembered_as_far_as_it_came(model):
    talk = model.conversation()
    stream = talk.stream("Tell me of a cat.", **OPTIONS)
    text = next(stream) + next(stream)
    stream.close()
    assert talk.messages == [{"role": "user", "content": "Tell me of a cat."}, {"role": "assistant", "content": text}]
    assert talk.ask("Go on.", **OPTIONS).token_ids == model.chat(talk.messages[:-1], **OPTIONS).token_ids


@pytest.mark.parametrize("error", [None, ValueError("a bug")])
def test_an_answer_that_fails_is_no_turn(model, monkeypatch, error):
    talk = model.conversation("Be kind.")
    talk.ask("Tell me of a cat.", **OPTIONS)
    messages, counted = list(talk.messages), model.stats
    for successes in (0, 1, 6):  # the question; the first token; a later one
        with monkeypatch.context() as patch:
            patch.setattr(model.decoder, "session", FailingSession(model.decoder.session, successes, error))
            with pytest.raises(RunError, match=r"bad allocation|a bug"):
                talk.ask("And the dog?", **OPTIONS)
        assert talk.messages == messages
        assert model.stats == counted
    result = talk.ask("And the dog?", **OPTIONS)
    assert result.timings.cached_tokens > 6  # what was run of the question is in the cache
    fresh = model.chat(talk.messages[:-1], **OPTIONS)
    assert (result.text, result.token_ids) == (fresh.text, fresh.token_ids)


@pytest.mark.parametrize("error", [ValueError("a bug"), SystemExit(3)])
def test_bugs_are_no_turns_either(model, monkeypatch, error):
    talk = model.conversation()

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("fairy2i_runtime.text.streaming.StopMatcher.push", fail)
        with pytest.raises(type(error)):
            talk.ask("Tell me of a cat.", **OPTIONS)
    assert talk.messages == []
    assert talk.ask("Tell me of a cat.", **OPTIONS).text == model.chat(talk.messages[:-1], **OPTIONS).text


@pytest.mark.parametrize("where", ["in the model", "outside"])
def test_ctrl_c_keeps_what_there_is_of_an_answer(model, monkeypatch, where):
    talk, pieces = model.conversation(), []

    def on_text(piece: str) -> None:
        pieces.append(piece)
        if where == "outside" and len(pieces) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "in the model":
            session = FailingSession(model.decoder.session, 4, KeyboardInterrupt())
            patch.setattr(model.decoder, "session", session)
        with pytest.raises(KeyboardInterrupt):
            talk.ask("Tell me of a cat.", on_text=on_text, **OPTIONS)
    assert pieces
    assert [message["content"] for message in talk.messages] == ["Tell me of a cat.", "".join(pieces)]
    assert talk.ask("Go on.", **OPTIONS).token_ids == model.chat(talk.messages[:-1], **OPTIONS).token_ids


def test_a_question_that_does_not_fit_leaves_the_conversation_as_it_was(model):
    talk = model.conversation()
    talk.ask("Tell me of a cat.", **OPTIONS)
    messages = list(talk.messages)
    with pytest.raises(ContextError, match="512"):
        talk.ask("cat " * 600)
    assert talk.messages == messages
    assert talk.ask("And then?", **OPTIONS).text == model.chat(talk.messages[:-1], **OPTIONS).text


def test_a_new_question_ends_an_answer_that_is_still_open(model):
    talk = model.conversation()
    first = talk.stream("Tell me of a cat.", **OPTIONS)
    text = next(first)
    result = talk.ask("And the dog?", **OPTIONS)
    assert list(first) == []
    assert first.result.finish_reason == "interrupted"
    assert [message["content"] for message in talk.messages] == ["Tell me of a cat.", text, "And the dog?", result.text]
    assert result.token_ids == model.chat(talk.messages[:-1], **OPTIONS).token_ids


def test_unstarted_streams_leave_no_trace(model):
    talk = model.conversation()
    talk.stream("Tell me of a cat.").close()
    assert talk.messages == []


def test_a_model_without_template_continues_each_line(model):
    base = load(stories_folder(), kernel="exact")
    talk = base.conversation("ignored")
    assert not talk.is_chat
    assert model.conversation().is_chat
    for line in ("Once upon a time", "Lily had"):
        assert talk.ask(line, **OPTIONS).text == base.generate(line, **OPTIONS).text
    with pytest.raises(ChatTemplateError, match="base model"):
        base.chat([{"role": "user", "content": "hello"}])


def test_chat_wants_messages(model):
    with pytest.raises(OptionError, match="at least one message"):
        model.chat([])
