"""``fairy2i chat`` on a terminal: keys, pasted text, histories, Ctrl-C and Ctrl-D."""

from __future__ import annotations

import codecs
import json
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import heed_interrupts
from fairy2i_runtime import load
from runtime_models import FAIRY2I, GREEDY

PROMPT = "\x1b[?2004h> "  # pasting is told from typing from here on
pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="POSIX terminals"),
    pytest.mark.usefixtures("own_history"),
]


class Terminal:
    """``fairy2i chat`` on a terminal of its own."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        import pty

        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            heed_interrupts()
            paths = os.pathsep.join(path for path in sys.path if path)
            os.environ.update(TERM="xterm", INPUTRC="/dev/null", PYTHONPATH=paths, PYTHONUTF8="1", **variables)
            os.execv(sys.executable, [*FAIRY2I, "chat", *arguments])
        self.seen = self.rest = ""
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def type(self, keys: str | bytes) -> None:
        os.write(self.fd, keys.encode() if isinstance(keys, str) else keys)

    def interrupt(self) -> None:
        """Ctrl-C, until something is shown.

        CPython's input() asks for signals only when its wait for a key is interrupted: one that comes between the prompt
        (or the echo of a key) and that wait is heeded at the next.
        """
        for _ in range(60):
            self.type("\x03")
            if select.select([self.fd], [], [], 1)[0]:
                return
        raise AssertionError("nothing is shown at Ctrl-C")

    def until(self, text: str, times: int = 1, seconds: float = 60) -> str:
        """What appears until a text has, so many times; what comes behind it is for the next call."""
        seen, end = self.rest, time.monotonic() + seconds
        while seen.count(text) < times:
            assert time.monotonic() < end, f"no {text!r} in {seen!r}"
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    seen += self.decoder.decode(os.read(self.fd, 65536))
                except OSError:  # it has ended
                    self.seen += seen
                    return seen
        parts = seen.split(text)
        shown, self.rest = text.join([*parts[:times], ""]), text.join(parts[times:])
        self.seen += shown
        return shown

    def end(self) -> int:
        self.type("\x15/exit\r")
        self.until("never shown", seconds=60)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.fd)
        return code


@pytest.fixture
def terminal(chatty: Path) -> Iterator[Terminal]:
    pytest.importorskip("readline")
    started = Terminal(str(chatty), "--max-new-tokens=3", *GREEDY)
    started.until(PROMPT)
    yield started
    assert started.end() == 0


def test_a_terminal_edits_lines_and_remembers_them(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type("Hello unusual dog\x1b[D\x1b[D\x1b[Dcat \r")  # three to the left
    terminal.until(PROMPT)
    terminal.type("\x1b[A")
    assert "Hello unusual cat dog" in terminal.until("unusual cat dog")
    terminal.type("\x15")  # discard the line
    terminal.type('"""\rtwo\rlines\r"""\r')
    terminal.until(PROMPT)
    terminal.type("\tx\r")  # no names of files
    terminal.until(PROMPT)
    entries = [json.loads(line) for line in (tmp_path / "history").read_text().splitlines()]
    assert entries == ["Hello unusual cat dog", "two\nlines", "\tx"]
    assert stat.S_IMODE((tmp_path / "history").stat().st_mode) == 0o600
    assert "^[[" not in terminal.seen


def test_a_later_chat_finds_the_history_of_an_earlier_one(chatty: Path, tmp_path: Path) -> None:
    pytest.importorskip("readline")
    (tmp_path / "history").write_text('"said yesterday"\n"in two\\nlines"\n')
    terminal = Terminal(str(chatty), "--max-new-tokens=3")
    terminal.until(PROMPT)
    terminal.type("\x1b[A\x1b[A")
    terminal.until("said yesterday")
    assert terminal.end() == 0


def test_a_history_can_be_turned_off(chatty: Path, tmp_path: Path) -> None:
    pytest.importorskip("readline")
    terminal = Terminal(str(chatty), "--max-new-tokens=3", FAIRY2I_HISTORY="", XDG_STATE_HOME=str(tmp_path))
    terminal.until(PROMPT)
    terminal.type("Hello unusual cat\r")
    terminal.until(PROMPT)
    terminal.type("\x1b[A")
    terminal.until("unusual cat")  # of this session
    assert terminal.end() == 0
    assert list(tmp_path.iterdir()) == []


def test_pasted_lines_are_one_text(terminal: Terminal, chatty: Path) -> None:
    answer = load(chatty).conversation().ask("Hello cat.\nAnd dog?\nWhat then?", max_new_tokens=3).text
    terminal.type("\x1b[200~Hello cat.\rAnd dog?\rWhat then?\x1b[201~")
    terminal.until("What then?")
    terminal.type("\r")
    assert answer in terminal.until(PROMPT).replace("\r\n", "\n")


def test_bytes_that_are_no_utf8_do_not_end_a_chat_on_a_terminal(terminal: Terminal) -> None:
    terminal.type(b"caf\xe9 \xff\r")
    terminal.until(PROMPT)
    terminal.type("Hello\r")
    terminal.until(PROMPT)


def test_without_readline_a_terminal_can_chat(chatty: Path, tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "readline.py").write_text("raise ImportError('none here')\n")
    first = os.environ.get("PYTHONPATH", "")
    sys.path.insert(0, str(tmp_path / "without"))
    try:
        terminal = Terminal(str(chatty), "--max-new-tokens=3", *GREEDY)
    finally:
        sys.path.remove(str(tmp_path / "without"))
    assert os.environ.get("PYTHONPATH", "") == first
    terminal.until("\n> ")
    answer = load(chatty).conversation().ask("Hello cat.", max_new_tokens=3).text
    terminal.type("Hello cat.\r")
    assert answer in terminal.until("\n> ")
    assert terminal.end() == 0
    assert not (tmp_path / "history").exists()


def history_of(folder: Path) -> list[str]:
    return [json.loads(line) for line in (folder / "history").read_text().splitlines()]


def test_wide_characters_are_edited_as_one(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type("日本語カナ\x1b[D\x1b[D👍x\x7f\r")  # two to the left, insert, take one back
    terminal.until(PROMPT)
    assert history_of(tmp_path) == ["日本語👍カナ"]


def test_pasted_lines_come_back_in_a_later_chat(terminal: Terminal, chatty: Path, tmp_path: Path) -> None:
    answer = load(chatty).conversation().ask("Hello 日本語\nAnd dog?", max_new_tokens=3).text
    terminal.type("\x1b[200~Hello 日本語\rAnd dog?\x1b[201~\r")
    assert answer in terminal.until(PROMPT).replace("\r\n", "\n")
    assert history_of(tmp_path) == ["Hello 日本語\nAnd dog?"]
    later = Terminal(str(chatty), "--max-new-tokens=3", *GREEDY)
    later.until(PROMPT)
    later.type("\x1b[A\r")
    assert answer in later.until(PROMPT).replace("\r\n", "\n")
    assert later.end() == 0


def test_a_very_long_line_is_one_text(terminal: Terminal, tmp_path: Path) -> None:
    """Longer than the 4096 bytes that a terminal holds for a program without line editing."""
    terminal.type("\x1b[200~" + "word " * 2000 + "\x1b[201~\r")
    assert "tokens and the context holds 512" in terminal.until("begins anew")
    terminal.until(PROMPT)
    for _ in range(10):
        terminal.type("x" * 500)
        time.sleep(0.02)  # as nobody can type faster
    terminal.type("\r")
    assert "tokens and the context holds 512" in terminal.until("begins anew")
    terminal.until(PROMPT)
    assert not (tmp_path / "history").exists() or max(map(len, history_of(tmp_path))) <= 4000


def test_ctrl_c_discards_a_line_and_stops_an_answer(chatty: Path, tmp_path: Path) -> None:
    terminal = Terminal(str(chatty), "--max-new-tokens=100000", *GREEDY)
    terminal.until(PROMPT)
    terminal.type("half a line")
    terminal.until("half a line")
    terminal.interrupt()
    terminal.until("Ctrl-D ends the program")
    terminal.until(PROMPT)
    whole = load(chatty).conversation().ask("Once", max_new_tokens=None).text
    terminal.type("Once\r")
    terminal.until(whole[:12])
    terminal.type("\x03")
    seen = terminal.until(PROMPT)
    assert "stopped" in seen or "the context is full" in seen  # a fast machine may be done before the signal comes
    terminal.type("Hello cat.\r")
    terminal.until("\n")
    terminal.until(PROMPT, seconds=120)
    assert history_of(tmp_path) == ["Once", "Hello cat."]
    assert terminal.end() == 0


def test_ctrl_d_ends_a_chat_but_not_in_a_line(chatty: Path) -> None:
    terminal = Terminal(str(chatty), "--max-new-tokens=3", *GREEDY)
    terminal.until(PROMPT)
    terminal.type("Hello\x04 cat.\r")
    terminal.until(PROMPT)
    terminal.type("\x04")
    assert "decode:" in terminal.until("never shown", seconds=60)
    assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 0
    os.close(terminal.fd)


def test_a_terminal_that_goes_away_ends_the_chat(chatty: Path) -> None:
    terminal = Terminal(str(chatty), "--max-new-tokens=3", *GREEDY)
    terminal.until(PROMPT)
    os.close(terminal.fd)  # the window is closed: SIGHUP, and the end of input
    end = time.monotonic() + 30
    while os.waitpid(terminal.pid, os.WNOHANG) == (0, 0):
        assert time.monotonic() < end, os.kill(terminal.pid, signal.SIGKILL)
        time.sleep(0.05)
