"""Grammars for servers: which parameter carries one, in a syntax that they all read, and how to see that they obey."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from warmline.engine.engine import EngineError, Sampling

Structured = Literal["auto", "none", "structured_outputs", "guided_grammar", "grammar", "ebnf"]

# Parameter of a chat completion -> the only two answers to its grammar in a probe. No greeting holds any of them.
PROBE_WORDS: Mapping[str, tuple[str, str]] = {
    "structured_outputs": ("amber", "copper"),  # vLLM 0.11 and newer
    "guided_grammar": ("velvet", "linen"),  # vLLM before 0.12
    "grammar": ("otter", "heron"),  # llama.cpp
    "ebnf": ("walnut", "cedar"),  # SGLang
}
PROBE_PROMPT = "Say hello."
PROBE_SAMPLING = Sampling(temperature=0, top_p=1, max_new_tokens=16)

_NAME = re.compile(r"[A-Za-z]\w*")
_PART = re.compile(r'\s+|"[^"\\]+"|[()|?]|[A-Za-z]\w*')


def parameters_to_try(structured: str) -> tuple[str, ...]:
    """The parameters that a `structured` setting allows. Raises EngineError for one that is none of `Structured`."""
    if structured == "none":
        return ()
    if structured == "auto":
        return tuple(PROBE_WORDS)
    if structured not in PROBE_WORDS:
        raise EngineError(f"structured is {structured!r}; expected auto, none or one of {', '.join(PROBE_WORDS)}")
    return (structured,)


def grammar_fields(parameter: str, lark: str) -> dict[str, Any]:
    """What a request's body holds besides the rest, so that the reply keeps to the grammar."""
    text = gbnf(lark)
    return {parameter: {"grammar": text} if parameter == "structured_outputs" else text}


def probe_fields(parameters: Iterable[str]) -> dict[str, Any]:
    """The same for a probe: a grammar of its own for each parameter, so that one answer tells which is obeyed."""
    body: dict[str, Any] = {}
    for parameter in parameters:
        first, second = PROBE_WORDS[parameter]
        body |= grammar_fields(parameter, f'start: WORD\nWORD: ("{first}" | "{second}")\n')
    return body


def obeyed(answer: str) -> str | None:
    """The parameter whose grammar this answer to a probe keeps to; None if it keeps to none.

    >>> obeyed("otter"), obeyed("Hello!"), obeyed("an otter")
    ('grammar', None, None)
    """
    return next((parameter for parameter, words in PROBE_WORDS.items() if answer in words), None)


def gbnf(lark: str) -> str:
    r"""A Lark grammar in GBNF, which llama.cpp, xgrammar and llguidance read.

    Only what `safety/grammar` writes: one rule a line, made of quoted texts, names, `|`, `?` and round brackets.
    Raises EngineError for anything else.

    >>> print(gbnf('start: BIG_CAT " sleeps"\nBIG_CAT: ("the " | "a ")? "lynx"\n'), end="")
    root ::= BIG-CAT " sleeps"
    BIG-CAT ::= ("the " | "a ")? "lynx"
    """
    rules: dict[str, list[str]] = {}
    for number, line in enumerate(lark.splitlines(), 1):
        name, _, text = line.partition(":")
        parts = _PART.findall(text)
        if not _NAME.fullmatch(name) or name in rules or not text.strip() or "".join(parts) != text:
            raise EngineError(f"line {number} of the grammar has no form that can be sent to a server")
        rules[name] = parts
    named = {part for parts in rules.values() for part in parts if _NAME.fullmatch(part)}
    if "start" not in rules or "root" in rules or not named <= rules.keys():
        raise EngineError("the grammar has no start, a rule named root, or a name without a rule")
    return "".join(f"{_rename(name)} ::={''.join(map(_rename, parts))}\n" for name, parts in rules.items())


def _rename(part: str) -> str:
    """A rule's name in GBNF, where older readers know no underscore; other parts stay as they are."""
    if not _NAME.fullmatch(part):
        return part
    return "root" if part == "start" else part.replace("_", "-")
