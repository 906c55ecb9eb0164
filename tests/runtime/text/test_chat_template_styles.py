"""Chat templates in the styles of published models, written for these tests: the text is that of ``apply_chat_template``.

The oracle is transformers' tokenizer of the same folder, with all that it hands to a template besides the messages.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export_helpers import write_tokenizer
from fairy2i_runtime.errors import ChatTemplateError
from fairy2i_runtime.text.chat_template import ChatTemplate
from fairy2i_runtime.text.tokenizer import Tokenizer

STYLES = {
    "llama3": """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "?" %}
{%- endif %}
{%- if messages[0].role == "system" %}
    {%- set system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- else %}{% set system = "" %}{% endif %}
{{- "<|head|>system<|tail|>\\n\\n" }}
{%- if tools is not none %}{{ "Environment: ipython\\n" }}{% endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{%- for tool in tools or [] %}{{ tool | tojson(indent=4) }}{{ "\\n\\n" }}{% endfor %}
{{- system }}{{ "<|eot|>" }}
{%- for message in messages %}
    {%- if not (message.role == "ipython" or message.role == "tool" or "tool_calls" in message) %}
        {{- "<|head|>" + message["role"] + "<|tail|>\\n\\n" + message["content"] | trim + "<|eot|>" }}
    {%- elif "tool_calls" in message %}
        {%- if not message.tool_calls | length == 1 %}{{ raise_exception("one tool call at a time") }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- "<|head|>assistant<|tail|>\\n\\n" }}
        {{- '{"name": "' + call.name + '", ' + '"parameters": ' + (call.arguments | tojson) + "}" }}
    {%- else %}
        {{- "<|head|>ipython<|tail|>\\n\\n" }}{{ message.content | tojson if message.content is mapping else message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|head|>assistant<|tail|>\\n\\n" }}{% endif %}""",
    "qwen3": """\
{%- set ns = namespace(multi_step=true, last=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string %}
        {%- set ns.multi_step = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- if tools %}{{ "<|im_start|>system\\n# Tools\\n<tools>" }}
    {%- for tool in tools %}{{ "\\n" }}{{ tool | tojson }}{% endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}{% endif %}
{%- for message in messages %}
    {%- if message.content is string %}{% set content = message.content %}{% else %}{% set content = "" %}{% endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = "" %}
        {%- if message.reasoning_content is string %}{% set reasoning = message.reasoning_content %}
        {%- elif "</think>" in content %}
            {%- set reasoning = content.split("</think>")[0].rstrip("\\n").split("<think>")[-1].lstrip("\\n") %}
            {%- set content = content.split("</think>")[-1].lstrip("\\n") %}
        {%- endif %}
        {{- "<|im_start|>assistant\\n" }}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- "<think>\\n" + reasoning.strip("\\n") + "\\n</think>\\n\\n" }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {{- "\\n<tool_call>\\n" }}{{ call.function.name }} {{ call.function.arguments | tojson(sort_keys=True) }}
        {%- endfor %}
        {{- "<|im_end|>\\n" }}
    {%- else %}{{ "<|im_start|>" + message.role + "\\n" + content + "<|im_end|>" + "\\n" }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ "<think>\\n\\n</think>\\n\\n" }}{% endif %}
{%- endif %}""",
    "smollm3": """\
{%- if enable_thinking is not defined %}{%- set enable_thinking = true %}{%- endif %}
{%- if xml_tools is defined and xml_tools %}{%- set listed = xml_tools %}{%- else %}{%- set listed = tools %}{%- endif %}
{%- set reasoning_mode = "/think" if enable_thinking else "/no_think" %}
{%- if messages[0]["role"] == "system" %}
    {%- set message = messages[0]["content"] %}
    {%- if "/no_think" in message %}{%- set reasoning_mode = "/no_think" %}{%- endif %}
    {%- set instructions = message.replace("/no_think", "").replace("/think", "").rstrip() %}
{%- endif %}
<|im_start|>system
## Metadata

Today Date: {{ strftime_now("%d %B %Y") }}
Reasoning Mode: {{ reasoning_mode }}

{% if instructions %}{{ instructions + "\\n\\n" }}{% else %}{{ "Be kind.\\n\\n" }}{% endif %}
{%- for tool in listed or [] %}{{ tool | string ~ "\\n" }}{% endfor %}
<|im_end|>
{% for message in messages %}
    {%- set content = message.content if message.content is string else "" %}
    {%- if message.role == "user" %}{{ "<|im_start|>user\\n" + content + "<|im_end|>\\n" }}
    {%- elif message.role == "assistant" %}
        {%- generation %}{% set shown = content.lstrip("\\n") %}
            {{- "<|im_start|>assistant\\n" + shown + "<|im_end|>\\n" }}{% endgeneration %}
        {{- shown is defined }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}
    {{- "<think>\\n\\n</think>\\n" if reasoning_mode == "/no_think" }}{% endif %}""",
    "mistral": """\
{%- if messages[0]["role"] == "system" %}{%- set system = messages[0]["content"] %}{%- set rest = messages[1:] %}
{%- else %}{%- set rest = messages %}{%- endif %}
{%- set users = rest | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in rest %}
    {%- if message["role"] not in ["user", "assistant", "tool"] %}
        {{- raise_exception("unknown role " + message["role"]) }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == users[-1]) %}
            {{- "[TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}{{- '{"type": "function", "function": {' }}
                {%- for key, value in tool.items() if key != "return" %}
                    {%- if value is string %}{{- '"' + key + '": "' + value + '"' }}
                    {%- else %}{{- '"' + key + '": ' + value | tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}{{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}{{- "[/TOOLS]" }}
        {%- endif %}
        {{- "[INST] " + (system + "\\n\\n" if loop.last and system is defined else "") + message["content"] + "[/INST]" }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}{{ "[CALLS] " ~ message.tool_calls | length }}
    {%- elif message["role"] == "assistant" %}{{ " " + message["content"] | trim + eos_token }}
    {%- else %}{{ "[RESULT] " + message.content | string }}{%- endif %}
{%- endfor %}""",
    "gemma": """\
{{ bos_token }}{% if messages[0]["role"] == "system" %}{% set first = messages[0]["content"] ~ "\\n\\n" %}
{%- set loop_messages = messages[1:] %}
{%- else %}{% set first = "" %}{% set loop_messages = messages %}{% endif %}
{%- for message in loop_messages -%}
    {%- if (message["role"] == "assistant") -%}{%- set role = "model" -%}{%- else -%}{%- set role = message["role"] -%}{%- endif -%}
    {{ "<start_of_turn>" + role + "\\n" + (first if loop.first else "") }}
    {%- if message["content"] is string -%}{{ message["content"] | trim }}
    {%- elif message["content"] is iterable -%}
        {%- for item in message["content"] -%}
            {%- if item["type"] == "image" -%}{{ boi_token }}
            {%- elif item["type"] == "text" -%}{{ item["text"] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ "<end_of_turn>\\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<start_of_turn>model\\n" }}{%- endif -%}""",
    "documents": "{% for d in documents or [] %}{{ d.title }}: {{ d.text }}\n{% endfor %}{{ documents is none }}"
    "{{ pad_token is defined }}"
    "{% for m in messages %}{{ m | tojson }}{% endfor %}{{ dict.fromkeys(['a'], 1) }}{{ namespace(self=2).self }}",
}
TALKS: dict[str, list[dict[str, Any]]] = {
    "one question": [{"role": "user", "content": ' Why is <the> sky "blue"? 日本 \n'}],
    "a system message": [
        {"role": "system", "content": "Be brief. /no_think"},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "<think>\nlight\n</think>\n\nBecause."},
        {"role": "user", "content": "And?"},
    ],
    "values that are None": [
        {"role": "user", "content": "Why?", "tool_calls": None, "name": None},
        {"role": "assistant", "content": "Because.", "tool_calls": None, "reasoning_content": None},
        {"role": "user", "content": "And?"},
    ],
    "reasoning under another name": [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Because.", "thinking": "light"},
    ],
    "a tool is called": [
        {"role": "user", "content": "How warm is it?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "function": {"name": "warmth", "arguments": {"place": "Zürich", "at": 3}}}],
        },
        {"role": "tool", "content": "7"},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": " Look "}, {"type": "image"}]}],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "warmth",
            "description": "Says <how> warm.",
            "parameters": {"type": "object", "properties": {}},
        },
    }
]
VARIABLES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "no answer": {"add_generation_prompt": False},
    "no thinking": {"enable_thinking": False, "date_string": "26 Jul 2024"},
    "tools": {"tools": TOOLS, "xml_tools": TOOLS},
    "documents": {"documents": [{"title": "T", "text": "x < y"}], "bos_token": "<other>"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "boi_token": "<image>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def compare(folder: Path, messages: list[dict[str, Any]], **variables: Any) -> str:
    """What both make of a conversation: the same text, or a refusal by both."""
    transformers = pytest.importorskip("transformers")
    hf = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    template = ChatTemplate.load(folder, Tokenizer.load(folder).special_tokens)
    assert template is not None
    wanted = {"add_generation_prompt": True, **variables}
    try:
        expected = hf.apply_chat_template(messages, tokenize=False, **wanted)
    except Exception:
        with pytest.raises(ChatTemplateError):
            template.render(messages, **wanted)
        return ""
    assert template.render(messages, **wanted) == expected
    return str(expected)


@pytest.mark.parametrize("style", STYLES)
def test_the_text_is_that_of_transformers(folder: Path, style: str) -> None:
    (folder / "chat_template.jinja").write_text(STYLES[style], encoding="utf-8")
    texts = {compare(folder, talk, **variables) for talk in TALKS.values() for variables in VARIABLES.values()}
    assert len(texts - {""}) > 8


def test_several_templates(folder: Path) -> None:
    """chat_template.jinja with the folder beside it, the folder without a default, a list, an object; tools choose."""
    talk = TALKS["one question"]
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = {"default": "D {{ messages[0].role }}", "tool_use": "T {{ tools | length }}", "rag": "R"}
    for value in ([{"name": name, "template": text} for name, text in named.items()], named):
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": value}))
        assert compare(folder, talk) == "D user"
        assert compare(folder, talk, tools=TOOLS) == "T 1"
        assert compare(folder, talk, tools=[]) == "T 0"
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("file T")
    assert compare(folder, talk, tools=TOOLS) == "file T"
    (more / "rag.jinja").write_text("file R")
    assert compare(folder, talk) == ""  # neither is the default, and tokenizer_config.json no longer counts
    (folder / "chat_template.jinja").write_text("file D")
    assert compare(folder, talk) == "file D"
    assert compare(folder, talk, tools=TOOLS) == "file T"


def test_templates_see_plain_values_only(folder: Path) -> None:
    """Objects have methods, and a template is a stranger's program."""
    import numpy as np

    class Path_(str):
        def unlink(self) -> str:
            return "gone"

    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }} {{ m.x }} {{ m.content.unlink is defined }}{% endfor %}{{ y }}"
    )
    for x in (Path_("a"), np.float32(0.5), np.bool_(False), (1, (2, "b")), object(), True, 2**70):
        talk = [{"role": "user", "content": Path_("text"), "x": x}]
        text = compare(folder, talk, y=x)
        assert text.startswith("text ")
        assert "False" in text


@pytest.mark.parametrize("variables", [{"tools": "warmth"}, {"tools": [3]}, {"documents": ["text"]}, {"tools": {"name": 1}}])
def test_tools_and_documents_are_lists_of_objects(folder: Path, variables: dict[str, Any]) -> None:
    (folder / "chat_template.jinja").write_text("x")
    template = ChatTemplate.load(folder, {})
    assert template is not None
    with pytest.raises(ChatTemplateError, match="expected a list of objects"):
        template.render(TALKS["one question"], **variables)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**15 }}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{{ range(10**9) | list }}",
        "{{ 10.0 ** 400 }}",
    ],
)
def test_templates_that_ask_for_too_much(source: str) -> None:
    with pytest.raises(ChatTemplateError, match=r"^here: "):
        ChatTemplate(source, {}, origin="here").render(TALKS["one question"])
