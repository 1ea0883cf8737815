"""Go's text/template, as much of it as Ollama's templates here use, after its documentation (pkg.go.dev/text/template).

Actions: fields of the cursor (`.Role`), quoted constants, `range`, `if`, `else`, `else if`, `end`, `eq`; trim markers `{{-` and
`-}}`. Everything else is an error, as it would be there.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

# A quoted constant may hold braces.
ACTION = re.compile(r"""\{\{(?P<left>-\s)?(?P<code>(?:"(?:[^"\\]|\\.)*"|[^"}])*?)(?P<right>\s-)?\}\}""", re.DOTALL)
WORD = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|[.\w$]+)""")


class GoTemplateError(ValueError):
    """What Go would refuse to parse, or what this evaluator does not know."""


def execute(template: str, data: Mapping[str, Any]) -> str:
    """The template's text for `data`."""
    nodes, rest = _parse(_lex(template), inside=False)
    assert not rest
    return _run(nodes, data)


def ollama(template: str, messages: Sequence[Mapping[str, str]]) -> str:
    """As Ollama executes a template with `.Messages` (template/template.go): system messages are `.System` too, messages of
    one role that follow each other are one."""
    collated: list[dict[str, str]] = []
    for message in messages:
        if collated and collated[-1]["Role"] == message["role"]:
            collated[-1]["Content"] += "\n\n" + message["content"]
        else:
            collated.append({"Role": message["role"], "Content": message["content"]})
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")
    return execute(template, {"System": system, "Messages": collated, "Response": "", "Prompt": ""})


def _lex(template: str) -> list[tuple[str, str]]:
    tokens, at = [], 0
    for match in ACTION.finditer(template):
        text = template[at : match.start()]
        if tokens and tokens[-1] == ("trim", ""):
            tokens.pop()
            text = text.lstrip(" \t\r\n")
        if match["left"]:
            text = text.rstrip(" \t\r\n")
        tokens += [("text", text), ("action", match["code"].strip())]
        if match["right"]:
            tokens.append(("trim", ""))
        at = match.end()
    text = template[at:]
    if tokens and tokens[-1] == ("trim", ""):
        tokens.pop()
        text = text.lstrip(" \t\r\n")
    if "{{" in text:
        raise GoTemplateError("an action is not closed")
    return [*tokens, ("text", text)]


Node = tuple[str, Any, list[Any], list[Any]]  # kind, operand, body, else


def _parse(tokens: list[tuple[str, str]], *, inside: bool) -> tuple[list[Node], list[tuple[str, str]]]:
    """Nodes up to the `else` or `end` that closes them, which stays first in the rest."""
    nodes: list[Node] = []
    while tokens:
        kind, code = tokens[0]
        if kind == "text":
            nodes.append(("text", code, [], []))
            tokens = tokens[1:]
            continue
        word, _, operand = code.partition(" ")
        if word in {"else", "end"}:
            if not inside:
                raise GoTemplateError(f"unexpected {code}")
            return nodes, tokens
        if word in {"if", "range"}:
            node, tokens = _block(word, operand, tokens[1:])
            nodes.append(node)
        else:
            nodes.append(("value", code, [], []))
            tokens = tokens[1:]
    if inside:
        raise GoTemplateError("unexpected EOF: a block has no end")
    return nodes, []


def _block(word: str, operand: str, tokens: list[tuple[str, str]]) -> tuple[Node, list[tuple[str, str]]]:
    body, rest = _parse(tokens, inside=True)
    closing = rest[0][1]
    if closing == "end":
        return (word, operand, body, []), rest[1:]
    if closing == "else":
        otherwise, rest = _parse(rest[1:], inside=True)
        if rest[0][1] != "end":
            raise GoTemplateError("expected end after else")
        return (word, operand, body, otherwise), rest[1:]
    if not closing.startswith("else if "):
        raise GoTemplateError(f"unexpected {closing}")
    nested, rest = _block("if", closing.removeprefix("else if "), rest[1:])  # shares the end
    return (word, operand, body, [nested]), rest


def _run(nodes: Sequence[Node], cursor: Any) -> str:
    written = []
    for kind, operand, body, otherwise in nodes:
        if kind == "text":
            written.append(operand)
        elif kind == "value":
            written.append(str(_value(operand, cursor)))
        elif kind == "if":
            written.append(_run(body if _value(operand, cursor) else otherwise, cursor))
        else:
            items = _value(operand, cursor)
            written.append("".join(_run(body, item) for item in items) if items else _run(otherwise, cursor))
    return "".join(written)


def _value(code: str, cursor: Any) -> Any:
    words, at = [], 0
    while at < len(code.rstrip()):
        match = WORD.match(code, at)
        if match is None:
            raise GoTemplateError(f"cannot read {code!r}")
        words.append(match[1])
        at = match.end()
    if words[:1] == ["eq"] and len(words) == 3:
        return _operand(words[1], cursor) == _operand(words[2], cursor)
    if len(words) != 1:
        raise GoTemplateError(f"not in the subset: {code!r}")
    return _operand(words[0], cursor)


def _operand(word: str, cursor: Any) -> Any:
    if word.startswith('"'):
        return json.loads(word)
    if word == ".":
        return cursor
    if re.fullmatch(r"\.\w+", word):
        return cursor[word[1:]]
    raise GoTemplateError(f"function {word!r} not defined")
