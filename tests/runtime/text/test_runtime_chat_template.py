"""Chat templates: the same text as transformers, found where models keep them, and no way out of the sandbox."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairy2i_runtime.errors import ChatTemplateError
from fairy2i_runtime.text.chat_template import ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES = [
    {"role": "system", "content": 'Be <kind> & "brief".\n'},
    {"role": "user", "content": "  Grüße, 日本 👍 "},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Why?"},
]
# written for these tests in the forms that published templates have
TEMPLATES = {
    "chatml": "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "inst": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ '<<SYS>>' ~ system ~ '<</SYS>>' if loop.first and system }}{{ m.content.strip() }}"
    " [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}",
    "blocks": "{% for m in messages %}\n    {% if m.role == 'system' %}\n    {% continue %}\n    {% endif %}\n"
    "{{ m | tojson }}\n  {% if loop.index > 3 %}{% break %}{% endif %}\n{% endfor %}\n{{ messages | tojson(indent=2) }}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, last='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.last = m.role %}{% endfor %}{{ ns.n }} {{ ns.last }} "
    "{{ tools is none }} {{ undefined_name is defined }} {{ dict(a=1).a }}",
}


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_equals_that_of_transformers(name, add_generation_prompt):
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    expected = utils.render_jinja_template(
        [MESSAGES], chat_template=TEMPLATES[name], add_generation_prompt=add_generation_prompt, **SPECIAL
    )[0][0]
    template = ChatTemplate(TEMPLATES[name], SPECIAL)
    assert template.render(MESSAGES, add_generation_prompt=add_generation_prompt) == expected


def test_dates_and_extra_variables():
    template = ChatTemplate("{{ strftime_now('%Y')[:2] }} {{ mood }}", {})
    assert template.render(MESSAGES, mood="glad") == "20 glad"


def test_a_template_that_refuses_is_quoted():
    with pytest.raises(ChatTemplateError, match="here: roles must alternate"):
        ChatTemplate(TEMPLATES["inst"], SPECIAL, origin="here").render(MESSAGES[2:])


@pytest.mark.parametrize("source", ["{% if %}", "{{ unclosed", "{% nonsense %}"])
def test_syntax_errors_name_the_line(source):
    with pytest.raises(ChatTemplateError, match="here: syntax error in line 2"):
        ChatTemplate("first\n" + source, {}, origin="here")


@pytest.mark.parametrize(
    "source", ["{{ 1 / 0 }}", "{{ messages[99].role.x }}", "{{ 'a' + 1 }}", "{{ messages | nofilter }}", "{{ messages() }}"]
)
def test_failing_templates_are_reported(source):
    with pytest.raises(ChatTemplateError, match=r"^here: "):
        ChatTemplate(source, {}, origin="here").render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['json'] }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ self._TemplateReference__context.environment.globals }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.__class__ }}",
        "{{ namespace(__class__=1) }}",
    ],
)
def test_templates_stay_in_the_sandbox(source):
    messages = [dict(message) for message in MESSAGES]
    try:
        text = ChatTemplate(source, SPECIAL).render(messages)
    except ChatTemplateError:
        text = ""
    assert text.strip() in ("", "None")
    assert messages == MESSAGES


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def test_where_templates_are_found(tmp_path):
    assert ChatTemplate.load(tmp_path, {}) is None
    write(tmp_path, "tokenizer_config.json", {"eos_token": "</s>"})
    assert ChatTemplate.load(tmp_path, {}) is None
    for value in (
        "one",
        [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "one"}],
        [{"name": "x", "template": "one"}],
        {"default": "one", "other": 3},
    ):
        write(tmp_path, "tokenizer_config.json", {"chat_template": value})
        template = ChatTemplate.load(tmp_path, {})
        assert template is not None
        assert template.render(MESSAGES) == "one"
    write(tmp_path, "chat_template.jinja", "own file")
    template = ChatTemplate.load(tmp_path, {})
    assert template is not None
    assert template.render(MESSAGES) == "own file"


@pytest.mark.parametrize(
    "value",
    [3, {"default": 1}, ["x"], [{"name": "a", "template": "x"}, {"name": "b", "template": "y"}], [], {}, True, "{% do x %}"],
)
def test_templates_that_cannot_be_used_say_why_when_they_are(tmp_path, value):
    write(tmp_path, "tokenizer_config.json", {"chat_template": value})
    template = ChatTemplate.load(tmp_path, {})
    assert template is not None
    assert "tokenizer_config.json: chat_template" in (template.problem or "")
    for use in (template.check, lambda: template.render(MESSAGES), lambda: template.variables):
        with pytest.raises(ChatTemplateError, match=r"tokenizer_config\.json: chat_template"):
            use()
