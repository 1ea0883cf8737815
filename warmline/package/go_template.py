"""A chat template in Ollama's language (Go's text/template), where it can say the same; checked on conversations.

A Jinja template is not translated but measured: it is asked to render conversations whose texts are known, what stands
between them is read off, and the result must render every other conversation to the same letters.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product, takewhile
from typing import NamedTuple

from warmline.data.tokenize import TemplateError
from warmline.package.subject import PackageError

Messages = Sequence[Mapping[str, str]]
Render = Callable[[Messages], str]  # with the prompt for a reply at the end
ROLES = ("system", "user", "assistant")
WAY_OUT = "serve it with vLLM (--to vllm), or with llama.cpp's server, which reads the template itself (--to gguf)"
# Texts that a template may trim, fold, escape or take for its own language.
PROBES = ("Hello.", "  spaces around  ", "two\n\nlines\n", "{{ .Content }} {% if %}", '<b>&amp;</b> "quoted"', "ça 😀")


class Layout(NamedTuple):
    """What stands around each message."""

    opening: str  # of a conversation without a system message
    before: Mapping[str, str]  # by role
    after: Mapping[str, str]
    asking: str  # for a reply, at the end


def layout_of(render: Render) -> Layout:
    """What a template writes around messages. Raises PackageError for a template that does more than that."""
    talk = _turns(5)
    try:
        systems = _between(render, [{"role": "system", "content": "0system0"}, *talk])
    except TemplateError:
        systems = None  # a template that refuses system messages
    try:
        plain = _between(render, talk)
        once = _between(render, talk[:1])
    except TemplateError as error:
        raise PackageError(
            f"the chat template refuses a conversation of user and assistant: {error}; {WAY_OUT}"
        ) from None
    to_user = [plain[0], plain[2], *(systems[1:2] if systems else [])]
    before_user = _common_end(to_user)
    after_assistant = plain[2].removesuffix(before_user)
    to_assistant, to_reply = plain[1], once[1]
    after_user = _common_start([to_assistant, to_reply])
    if to_assistant == to_reply and after_assistant:  # nicer to read where turns end alike
        after_user = _common_start([to_reply, after_assistant])
    layout = Layout(
        plain[0].removesuffix(before_user),
        {"user": before_user, "assistant": to_assistant.removeprefix(after_user)}
        | ({"system": systems[0]} if systems else {}),
        {"user": after_user, "assistant": after_assistant}
        | ({"system": systems[1].removesuffix(before_user)} if systems else {}),
        to_reply.removeprefix(after_user),
    )
    _check(layout, render)
    return layout


def written(layout: Layout, messages: Messages) -> str:
    """A conversation as the layout has it."""
    has_system = any(message["role"] == "system" for message in messages)
    turns = (
        layout.before[message["role"]] + message["content"] + layout.after[message["role"]] for message in messages
    )
    return ("" if has_system else layout.opening) + "".join(turns) + layout.asking


def go_template(layout: Layout) -> str:
    """The layout in Go's text/template over Ollama's `.System` and `.Messages`."""
    opening = f"{{{{ if .System }}}}{{{{ else }}}}{_literal(layout.opening)}{{{{ end }}}}" if layout.opening else ""
    roles = [role for role in ROLES if role in layout.before]
    branches = [
        f'{{{{ {"if" if number == 0 else "else if"} eq .Role "{role}" }}}}'
        f"{_literal(layout.before[role])}{{{{ .Content }}}}{_literal(layout.after[role])}"
        for number, role in enumerate(roles)
    ]
    body = "".join([*branches, "{{ end }}"])
    return f"{opening}{{{{ range .Messages }}}}{body}{{{{ end }}}}{_literal(layout.asking)}"


def _literal(text: str) -> str:
    """Plain text between actions: what opens an action, or what a Modelfile drops, becomes a quoted constant."""
    pieces = []
    for letter in text.replace("{{", "\0"):
        if letter == "\0":
            pieces.append('{{ "{{" }}')
        elif letter == "\n" or letter.isprintable():
            pieces.append(letter)
        else:
            pieces.append(f"{{{{ {json.dumps(letter)} }}}}")
    return "".join(pieces)


def _turns(count: int) -> list[dict[str, str]]:
    return [{"role": ROLES[1 + at % 2], "content": f"{at + 1}{ROLES[1 + at % 2]}{at + 1}"} for at in range(count)]


def _between(render: Render, messages: Messages) -> list[str]:
    """What stands before, between and after the texts of a conversation."""
    rest, pieces = render(messages), []
    for message in messages:
        piece, found, rest = rest.partition(message["content"])
        if not found:
            raise PackageError(f"the chat template leaves out what was said; {WAY_OUT}")
        pieces.append(piece)
    return [*pieces, rest]


def _check(layout: Layout, render: Render) -> None:
    """Raises PackageError unless the layout writes conversations of every length and text as the template does."""
    for length, with_system, start in product((1, 3, 5, 9), (True, False), range(len(PROBES))):
        if with_system and "system" not in layout.before:
            continue
        texts = [PROBES[(start + at) % len(PROBES)] for at in range(length + 1)]
        turns = [{"role": ROLES[1 + at % 2], "content": text} for at, text in enumerate(texts[:length])]
        messages = [{"role": "system", "content": texts[-1]}, *turns] if with_system else turns
        try:
            same = written(layout, messages) == render(messages)
        except TemplateError as error:
            raise PackageError(f"the chat template refuses some conversations: {error}; {WAY_OUT}") from None
        if not same:
            raise PackageError(
                "Ollama's templates cannot express this chat template: it does more than to stand around what was said "
                f"(it trims, counts or rewrites turns); {WAY_OUT}"
            )


def _common_start(texts: Sequence[str]) -> str:
    """What all texts begin with.

    >>> _common_start(["<|end|>", "<|end|>user", "<|endoftext|>"])
    '<|end'
    """
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in alike)


def _common_end(texts: Sequence[str]) -> str:
    return _common_start([text[::-1] for text in texts])[::-1]
