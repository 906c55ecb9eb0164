"""A chat template that cannot be used stops chat and nothing else; the export says so and does not suggest to chat."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from export_helpers import make_checkpoint
from fairy2i_export.commands.export import main as export_main
from fairy2i_export.commands.tools import main
from fairy2i_runtime import load
from fairy2i_runtime.errors import ChatTemplateError
from runtime_models import CHECKPOINT, copy_of_stories

JINJA = "chat_template.jinja"
# file (or key of tokenizer_config.json), contents, what the warning says
BROKEN: dict[str, tuple[str, Any, str]] = {
    "an unknown tag": ("chat_template", "{% for m in messages %}{% do x %}{% endfor %}", "unknown tag 'do'"),
    "an open block": (JINJA, b"first\n{% if messages %}", "syntax error in line 2: Unexpected end of template"),
    "an open expression": (JINJA, b"{{ messages", "syntax error in line 1"),
    "not UTF-8": (JINJA, b"{{ 'Gr\xfc\xdfe' }}", "chat_template.jinja: cannot be read as UTF-8 text"),
    "too many loops": (JINJA, b"{% for a in 'x' %}" * 30 + b"{% endfor %}" * 30, "cannot be compiled: too many"),
    "a break outside": (JINJA, b"{% break %}", "chat_template.jinja"),
    "no default": ("chat_template", [{"name": "a", "template": "A"}, {"name": "b", "template": "B"}], "is called 'default'"),
    "a list of texts": ("chat_template", ["A"], "expected a text or a list of named templates, got list"),
    "a number": ("chat_template", 7, "expected a text or a list of named templates, got int"),
    "a nameless template": ("chat_template", [{"template": None}], "expected templates by name"),
    "a folder without default": ("additional_chat_templates/a.jinja additional_chat_templates/b.jinja", b"A", "'default'"),
}


def put(folder: Path, where: str, value: Any) -> None:
    if isinstance(value, bytes):
        for name in where.split():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(value)
    else:
        (folder / "tokenizer_config.json").write_text(json.dumps({where: value}))


@pytest.mark.parametrize("name", BROKEN)
def test_export_warns_and_chat_alone_stops(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    where, value, words = BROKEN[name]
    put(make_checkpoint(tmp_path / "model"), where, value)
    out = tmp_path / "out"
    assert export_main([str(tmp_path / "model"), "-o", str(out), "--trained"]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("warning:") == 1
    assert words in printed.err
    assert "does not chat" in printed.err
    assert f"Try it: fairy2i generate {out}" in printed.out
    assert "fairy2i chat" not in printed.out + (out / "README.md").read_text()
    model = load(out)
    assert model.generate("w5", max_new_tokens=2).token_ids
    for begin in (model.conversation, lambda: model.chat([{"role": "user", "content": "w5"}])):
        with pytest.raises(ChatTemplateError) as caught:
            begin()
        assert words in str(caught.value)
    monkeypatch.setattr("sys.stdin", io.StringIO("w5\n"))
    assert main(["chat", str(out)]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert main(["generate", str(out), "w5", "--max-new-tokens", "2"]) == 0
    assert main(["info", str(out)]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect"],
        ["verify", "--tokens", "16"],
        ["ppl", "--text", "TEXT", "--window", "64", "--protocol", "sliding"],
        ["bench", "--prompt-tokens", "4", "--new-tokens", "2", "--repeat", "1"],
        ["report", "--against", "SOURCE", "--text", "TEXT", "--tokens", "16", "--no-torch", "--output", "PAGE"],
    ],
)
def test_the_other_commands_work(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_of_stories(tmp_path / "model")
    (folder / JINJA).write_text("{% nonsense %}")
    (tmp_path / "text").write_text("Once upon a time there was a little girl. " * 10)
    named = {"TEXT": str(tmp_path / "text"), "PAGE": str(tmp_path / "page.html"), "SOURCE": str(CHECKPOINT)}
    assert main([arguments[0], str(folder), *(named.get(x, x) for x in arguments[1:])]) == 0, capsys.readouterr().err


def test_lm_eval_needs_a_template_for_chats_only(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from fairy2i_export.check.lm_eval import Fairy2iLM

    folder = copy_of_stories(tmp_path / "model")
    (folder / JINJA).write_text("{% nonsense %}")
    lm = Fairy2iLM(str(folder), batch_size="1")
    (score, _), *_ = lm.loglikelihood([Instance("loglikelihood", {}, ("Once upon", " a time"), 0)])
    assert score < 0
    with pytest.raises(ChatTemplateError, match="unknown tag 'nonsense'"):
        lm.apply_chat_template([{"role": "user", "content": "Once"}])


def test_a_template_of_a_processor_is_not_the_tokenizers(tmp_path: Path) -> None:
    """As in transformers, whose tokenizers do not look into it."""
    transformers = pytest.importorskip("transformers")
    from fairy2i_export import export

    source = make_checkpoint(tmp_path / "model")
    (source / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert transformers.AutoTokenizer.from_pretrained(source).chat_template is None
    report = export(source, tmp_path / "a", trained=True)
    assert "chat_template.json: a chat template in this file belongs to a processor" in report.warnings[0]
    assert load(report.path).chat_template is None
    (source / JINJA).write_text("good")
    report = export(source, tmp_path / "b", trained=True)
    assert not report.warnings
    assert report.command.startswith("fairy2i chat")


def test_a_folder_of_templates_goes_along(tmp_path: Path) -> None:
    from fairy2i_export import export

    source = make_checkpoint(tmp_path / "model")
    put(source, f"{JINJA} additional_chat_templates/tool_use.jinja", b"{{ tools is none }}")
    report = export(source, tmp_path / "out", trained=True)
    assert (report.path / "additional_chat_templates" / "tool_use.jinja").read_bytes() == b"{{ tools is none }}"
    assert report.command.startswith("fairy2i chat")
    again = export(source, tmp_path / "out", trained=True, force=True)
    assert (again.path / "additional_chat_templates").is_dir()
    template = load(again.path).chat_template
    assert template is not None
    assert template.render([{"role": "user", "content": "w5"}], tools=[{}]) == "False"
