"""close() and cancel() from other threads, at any moment of a generation; one conversation used by several threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import heed_interrupts
from fairy2i_runtime import Model, load
from fairy2i_runtime.engine.interruption import Interrupted, Interruption
from fairy2i_runtime.text.generation import TextStream
from runtime_models import SlowSession

PROMPT = "Once upon a time"
LONG = {"max_new_tokens": 400, "ignore_eos": True}


@pytest.fixture
def model(chatty: Path) -> Model:
    return load(chatty, kernel="exact", threads=1)


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("how", [TextStream.close, TextStream.cancel])
@pytest.mark.parametrize("pieces", [1, 5, 40])
def test_another_thread_ends_a_stream_that_is_iterated_over(model: Model, how: Callable, pieces: int) -> None:
    whole = model.generate(PROMPT, **LONG)
    stream, seen, reached = model.stream(PROMPT, **LONG), [], threading.Event()

    def iterate() -> None:
        for piece in stream:
            seen.append(piece)
            if len(seen) == pieces:
                reached.set()

    iterating = in_thread(iterate)
    assert reached.wait(60)
    how(stream)
    if how is TextStream.close:
        assert stream.result.finish_reason == "interrupted"  # at once: close() waits
    iterating.join(60)
    assert not iterating.is_alive()
    assert stream.result.finish_reason == "interrupted"
    assert pieces <= len(stream.result.token_ids) < 390
    assert stream.result.text == "".join(seen)
    assert whole.text.startswith(stream.result.text)
    assert stream.result.token_ids == whole.token_ids[: len(stream.result.token_ids)]
    assert list(stream) == []
    assert model.stats.decode_tokens == whole.timings.decode_tokens + stream.result.timings.decode_tokens


@pytest.mark.parametrize("slow", [0, 1, 7])
@pytest.mark.parametrize("how", [TextStream.close, TextStream.cancel])
def test_a_run_is_given_up_in_the_middle(model: Model, monkeypatch: pytest.MonkeyPatch, slow: int, how: Callable) -> None:
    """Of the prompt (0) or of a token: the thread in onnxruntime comes back at once, and what was run stays valid."""
    expected = model.generate(PROMPT, max_new_tokens=20)
    session = SlowSession(model.decoder.session, slow)
    stream = model.stream(PROMPT, **LONG)
    with monkeypatch.context() as patch:
        patch.setattr(model.decoder, "session", session)
        with ThreadPoolExecutor(1) as pool:
            iterating = pool.submit(list, stream)
            assert session.entered.wait(60)
            time.sleep(0.05)
            how(stream)
            assert len(iterating.result(60)) <= slow
    assert stream.result.finish_reason == "interrupted"
    assert stream.result.token_ids == expected.token_ids[:slow]
    assert model.generate(PROMPT, max_new_tokens=20).token_ids == expected.token_ids


@pytest.mark.parametrize("how", [TextStream.close, TextStream.cancel])
def test_a_stream_that_has_not_begun(model: Model, monkeypatch: pytest.MonkeyPatch, how: Callable) -> None:
    stream = model.stream(PROMPT)
    monkeypatch.setattr(model.decoder, "session", None)  # nothing is to be run
    in_thread(lambda: how(stream)).join(60)
    assert list(stream) == []
    assert (stream.result.finish_reason, stream.result.token_ids, stream.result.text) == ("interrupted", [], "")
    assert model.stats.prompt_tokens == 0


def test_cancelling_what_has_ended_changes_nothing(model: Model) -> None:
    stream = model.stream(PROMPT, max_new_tokens=5)
    text = "".join(stream)
    stream.cancel()
    stream.close()
    assert (stream.result.text, stream.result.finish_reason) == (text, "length")


def test_generate_and_run_give_back_what_there_is(model: Model) -> None:
    stream, seen = model.stream(PROMPT, **LONG), []

    def on_text(piece: str) -> None:
        seen.append(piece)
        if len(seen) == 3:
            in_thread(stream.close).join(60)  # a button of a user interface

    result = stream.run(on_text)
    assert (result.finish_reason, result.text, len(seen)) == ("interrupted", "".join(seen), 3)


def test_several_threads_share_the_pieces_of_a_stream(model: Model) -> None:
    expected = model.generate(PROMPT, max_new_tokens=60)
    stream = model.stream(PROMPT, max_new_tokens=60)
    with ThreadPoolExecutor(4) as pool:
        parts = [part for task in [pool.submit(list, stream) for _ in range(4)] for part in task.result(60)]
    assert sorted(parts) == sorted(model.stream(PROMPT, max_new_tokens=60))
    assert stream.result.token_ids == expected.token_ids


def test_closing_from_within_a_step_does_not_wait_for_itself(model: Model) -> None:
    """As a signal handler may: it runs in the thread whose step it interrupts."""
    stream = model.stream(PROMPT, **LONG)
    decode, calls = stream._detokenizer._decode, []

    def handler(tokens: object) -> str:
        calls.append(tokens)
        if len(calls) == 20:
            stream.close()
        return decode(tokens)

    stream._detokenizer._decode = handler
    list(stream)
    assert stream.result.finish_reason == "interrupted"


def test_an_answer_cancelled_by_another_thread_is_remembered_as_far_as_it_came(model: Model) -> None:
    talk, seen = model.conversation("Be kind."), []

    def on_text(piece: str) -> None:
        seen.append(piece)
        if len(seen) == 4:
            in_thread(talk.cancel).join(60)

    result = talk.ask("Tell me of a cat.", on_text=on_text, **LONG)
    assert result.finish_reason == "interrupted"
    assert [message["content"] for message in talk.messages] == ["Be kind.", "Tell me of a cat.", "".join(seen)]
    assert talk.ask("Go on.", max_new_tokens=20).token_ids == model.chat(talk.messages[:-1], max_new_tokens=20).token_ids


def test_an_answer_given_up_while_its_question_is_read_is_no_turn(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = model.conversation()
    session = SlowSession(model.decoder.session, 0)
    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(model.decoder, "session", session)
        asking = pool.submit(talk.ask, "Tell me of a cat.", **LONG)
        assert session.entered.wait(60)
        talk.cancel()
        assert asking.result(60).finish_reason == "interrupted"
    assert talk.messages == []
    assert (
        talk.ask("Tell me of a cat.", max_new_tokens=20).token_ids
        == model.chat(talk.messages[:1], max_new_tokens=20).token_ids
    )


@pytest.mark.parametrize("tenth", range(0, 12, 2))
def test_a_conversation_goes_on_as_a_fresh_one_wherever_it_was_cancelled(model: Model, tenth: int) -> None:
    """At some moment of a question of several runs and of its answer: what a run has written by then is not taken for whole."""
    question, options = "Tell me of a cat. " * 25, {"max_new_tokens": 30, "ignore_eos": True}
    talk = model.conversation("Be kind.")
    talk.ask("Hello cat.", max_new_tokens=5)
    earlier, start = list(talk.messages), time.perf_counter()
    model.chat([*earlier, {"role": "user", "content": question}], **options)
    seconds = time.perf_counter() - start
    stream = talk.stream(question, **options)
    with ThreadPoolExecutor(1) as pool:
        iterating = pool.submit(list, stream)
        time.sleep(seconds * tenth / 10)
        stream.cancel()
        text = "".join(iterating.result(60))
    assert stream.result.finish_reason in ("interrupted", "length")
    turn = [question, text] if stream.result.token_ids else []
    assert [message["content"] for message in talk.messages] == [message["content"] for message in earlier] + turn
    result = talk.ask("Go on.", max_new_tokens=20)
    assert result.token_ids == model.chat(talk.messages[:-1], max_new_tokens=20).token_ids


def test_questions_of_several_threads_are_answered_one_after_the_other(model: Model) -> None:
    talk = model.conversation()
    questions = [f"Tell me of cat {number}." for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda text: talk.ask(text, max_new_tokens=8, ignore_eos=True), questions))
    assert sorted(message["content"] for message in talk.messages[::2]) == questions
    assert {message["role"] for message in talk.messages[::2]} == {"user"}
    answers = {talk.messages[at]["content"]: talk.messages[at + 1]["content"] for at in range(0, 12, 2)}
    assert answers == {question: result.text for question, result in zip(questions, results, strict=True)}
    for at in range(0, 12, 2):  # each as if all had been asked by one thread
        fresh = model.chat(talk.messages[: at + 1], max_new_tokens=8, ignore_eos=True)
        assert fresh.text == talk.messages[at + 1]["content"]


def test_a_question_of_another_thread_ends_a_stream_that_is_open(model: Model) -> None:
    talk, seen, reached = model.conversation(), [], threading.Event()
    stream = talk.stream("Tell me of a cat.", **LONG)

    def iterate() -> None:
        for piece in stream:
            seen.append(piece)
            reached.set()

    iterating = in_thread(iterate)
    assert reached.wait(60)
    second = talk.ask("And the dog?", max_new_tokens=10)
    iterating.join(60)
    assert stream.result.finish_reason == "interrupted"
    contents = ["Tell me of a cat.", "".join(seen), "And the dog?", second.text]
    assert [message["content"] for message in talk.messages] == contents
    assert second.token_ids == model.chat(talk.messages[:-1], max_new_tokens=10).token_ids


def test_onnxruntime_heeds_a_request_made_before_its_run(model: Model) -> None:
    interruption = Interruption()
    cache = model.decoder.new_cache()
    model.decoder.next_logits([5, 6], cache, interruption)
    interruption.request()
    with pytest.raises(Interrupted):
        model.decoder.next_logits([7], cache, interruption)
    assert cache.tokens == [5, 6]


CTRL_C = """
    import sys
    sys.path[:0] = {paths!r}
    import fairy2i_runtime.model
    from fairy2i_runtime.commands import program as commands
    from runtime_models import SlowSession
    load = fairy2i_runtime.model.load
    def slow_load(*arguments, **options):
        model = load(*arguments, **options)
        model.decoder.session = SlowSession(model.decoder.session, {slow})
        enter = model.decoder.session.entered.set
        model.decoder.session.entered.set = lambda: (print("slow now", file=sys.stderr, flush=True), enter())
        return model
    fairy2i_runtime.model.load = slow_load
    sys.exit(commands.run({arguments!r}, {{}}))
"""


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("slow", [0, 3])
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_ctrl_c_ends_a_run_of_the_model_at_once(chatty: Path, command: str, slow: int) -> None:
    """In the middle of native code, where Python's own KeyboardInterrupt has to wait."""
    arguments = [command, str(chatty), *([PROMPT] if command == "generate" else []), "--max-new-tokens", "9"]
    script = textwrap.dedent(CTRL_C).format(paths=[path for path in sys.path if path], slow=slow, arguments=arguments)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], **pipes, preexec_fn=heed_interrupts) as process:
        process.stdin.write(b"Hello cat.\nAnd dog?\n")
        process.stdin.close()
        said = b""
        while b"slow now" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        code = process.wait(60)
        out = process.stdout.read()
    assert b"Traceback" not in rest
    if command == "generate":
        assert code == 130
    else:
        assert (code, b"stopped" in rest) == (0, True)
        assert out.count(b"\n") == 2  # of the answer that was stopped, and of the next one
