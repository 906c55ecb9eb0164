"""The command ``fairy2i chat``."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairy2i_runtime.commands import given_text
from fairy2i_runtime.commands.options import (
    Context,
    Folder,
    Isa,
    Kernel,
    Lookup,
    Seed,
    Stop,
    Threads,
    TrustGraph,
    given_sampling,
    sampling_option,
    sampling_text,
)
from fairy2i_runtime.errors import OptionError

if TYPE_CHECKING:
    from fairy2i_runtime.text.options import GenerationChoices

# for models that recommend no sampling: with the most likely tokens small ones go in circles, in conversations at any penalty
CHAT_DEFAULTS: dict[str, Any] = {"temperature": 0.4, "top_p": 0.9, "repetition_penalty": 1.1}
_RECOMMENDED = "what the model recommends, else {}"
_PYTHON_WORDS = {"True": True, "False": False, "None": None}


def chat(
    folder: Folder,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message.", show_default=False)] = None,
    template_variable: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=JSON",
            help="A variable for the chat template, such as enable_thinking=false; may be repeated.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="The most tokens of an answer.")] = 512,
    temperature: Annotated[
        float | None, sampling_option("temperature", _RECOMMENDED.format(CHAT_DEFAULTS["temperature"]))
    ] = None,
    top_k: Annotated[int | None, sampling_option("top_k", _RECOMMENDED.format(0))] = None,
    top_p: Annotated[float | None, sampling_option("top_p", _RECOMMENDED.format(CHAT_DEFAULTS["top_p"]))] = None,
    repetition_penalty: Annotated[
        float | None, sampling_option("repetition_penalty", _RECOMMENDED.format(CHAT_DEFAULTS["repetition_penalty"]))
    ] = None,
    seed: Seed = None,
    stop: Stop = None,
    lookup: Lookup = 0,
    threads: Threads = None,
    kernel: Kernel = None,
    isa: Isa = None,
    context_length: Context = None,
    trust_graph: TrustGraph = False,
) -> None:
    """Talk to a model; /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends.

    Sampling is what the model's generation_config.json recommends, but for options. A model without a chat template (a base
    model) continues each line as plain text. In a terminal, lines are edited as in a shell; earlier ones are kept in
    ~/.local/state/fairy2i/chat_history, or the file that FAIRY2I_HISTORY names; FAIRY2I_HISTORY= turns that off.
    """
    from fairy2i_runtime.commands.terminal.chat_loop import chat_loop
    from fairy2i_runtime.commands.terminal.history import History, history_file
    from fairy2i_runtime.commands.terminal.interrupts import printing_text
    from fairy2i_runtime.commands.terminal.line_editor import LineEditor
    from fairy2i_runtime.model import load
    from fairy2i_runtime.text.options import GenerationOptions
    from fairy2i_runtime.text.recommended import recommended_sampling

    chosen = given_sampling(temperature, top_k, top_p, repetition_penalty)
    rest: GenerationChoices = {
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "stop": [given_text.argument("--stop", text) for text in stop or ()],
        "lookup": lookup,
    }
    GenerationOptions.of(**chosen, **rest)  # mistakes are told before the model is loaded
    system = None if system is None else given_text.argument("--system", system)
    variables = template_variables(template_variable or [])
    model = load(folder, threads=threads, kernel=kernel, isa=isa, context_length=context_length, trust_graph=trust_graph)
    talk = model.conversation(system if model.chat_template is not None else None, template_variables=variables)
    if not talk.is_chat:
        _say("this model has no chat template: every line is continued as plain text, without memory of earlier ones")
        if system is not None:
            _say("a system message needs a chat template: it is ignored")
    recommended = recommended_sampling(folder)
    defaults = {} if recommended.get("temperature") else CHAT_DEFAULTS
    options = GenerationOptions.of(**{**defaults, **recommended, **chosen}, **rest)
    _say(sampling_text(options, recommended, chosen))
    file = history_file()
    with printing_text():
        chat_loop(talk, vars(options), LineEditor(None if file is None else History(file)))  # type: ignore[arg-type]
        _say(str(model.stats))


def template_variables(given: list[str]) -> dict[str, Any]:
    """Variables given as NAME=JSON; what does not look like JSON is a text.

    Raises:
        OptionError: if one is of another form, broken JSON, no text, or given twice.
    """
    variables: dict[str, Any] = {}
    for entry in given:
        name, equals, text = given_text.argument("--template-variable", entry).partition("=")
        if not equals or not name.isidentifier():
            raise OptionError(f"--template-variable: expected NAME=JSON such as enable_thinking=false, got {entry!r}")
        if name in variables:
            raise OptionError(f"--template-variable: {name} was given twice")
        variables[name] = _value(name, text)
    return variables


def _value(name: str, text: str) -> Any:
    if text in _PYTHON_WORDS:  # as text they would all count as true
        return _PYTHON_WORDS[text]
    try:
        return json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        if text.lstrip()[:1] in ("{", "[", '"'):
            raise OptionError(f"--template-variable: {name}: expected JSON, got {text!r:.80} ({error})") from None
        return text


def _no_json(constant: str) -> None:
    """NaN and Infinity, which Python's json takes for numbers and JSON does not."""
    raise ValueError(f"{constant} is no JSON")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
