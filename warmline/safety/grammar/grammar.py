"""The grammar of supportive replies: the frames that fit a turn, as a Lark grammar for guided decoding or drawn at random.

Guided decoding is the last way to a reply in the model's own words (safety.md 6.7): its logits choose among frames and
among the alternatives inside them, so that random weights too give a kind and valid reply. The words are `en.yaml`.
"""

import math
import random
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

import yaml

from warmline.safety.levels import Level

MAX_FEELINGS = 4  # families of feelings that a turn's EMO slot chooses from
_PIECE = re.compile(r"\{\^?\w+\}|[(|)]|[^{}(|)]+")
_SENTENCE = re.compile(r"(?<=\.) ")


class Choice(tuple["Node", ...]):
    """One of several; an empty one means that nothing need stand there."""


class Row(tuple["Node", ...]):
    """One after the other."""


Node = str | Choice | Row


class GrammarError(ValueError):
    """A frame or part that cannot be read; shows it and says what is wrong."""


@dataclass(frozen=True)
class Spec:
    """What the replies of a turn are made of."""

    theme: str  # a key of `themes`
    slots: tuple[tuple[str, ...], ...]  # the orders in which slots may stand
    frames: tuple[tuple[str, tuple[str, ...]], ...]  # slot -> ids
    feelings: tuple[str, ...]  # keys of `feelings`
    minor: bool


def spec_for(
    level: Level,
    domains: Collection[str],
    emotions: Sequence[str],
    *,
    minor: bool = False,
    about_other: bool = False,
    follow_up: bool = False,
    avoid_frames: Collection[str] = (),
) -> Spec:
    """The grammar of a turn. Below emergency all levels share a form.

    `emotions`: the likeliest first, in the labels of GoEmotions, EmpatheticDialogues or ESConv or in words of the file;
    unknown ones are passed over, and without any the theme's own are used. `follow_up`: an earlier reply of the episode
    invited already. `avoid_frames`: ids that the last reply used; a slot with no other frame keeps its own.

    >>> spec = spec_for(Level.EMERGENCY, ["suicide"], ["fear"])
    >>> spec.slots, spec.feelings
    ((('ACK', 'EMO', 'URGENT'),), ('fear',))
    """
    table = _table()
    named = (name for name, row in table["themes"].items() if not {*row["domains"]}.isdisjoint(domains))
    theme = "other" if about_other else next(named, "default")
    row = table["themes"][theme]
    feelings = _feelings(emotions, row.get("drop", ())) or tuple(row["feelings"])
    is_plain = any(table["feelings"][name].get("plain") for name in feelings)
    support = "URGENT" if level == Level.EMERGENCY else "DOOR" if follow_up else "SUP"
    slots = (("ACK", "EMO", support), ("ACK", "EMO", "PRESENCE", support), ("ACK", "EMO", support, "PRESENCE"))
    slots = slots[:1] if level == Level.EMERGENCY else slots
    frames: list[tuple[str, tuple[str, ...]]] = []
    for slot in dict.fromkeys(slot for order in slots for slot in order):
        groups = [group for group in row["groups"][slot] if not (is_plain and group == "sense")]
        ids = [f"{slot}.{group}.{key}" for group in groups for key in table["slots"][slot][group]]
        frames.append((slot, tuple(each for each in ids if each not in avoid_frames) or tuple(ids)))
    is_child = minor or any(domain in table["child_domains"] for domain in domains)
    return Spec(theme, slots, tuple(frames), feelings, is_child)


@lru_cache(maxsize=64)  # a conversation asks for few, each takes tens of milliseconds
def lark(spec: Spec) -> str:
    """The grammar in the Lark syntax of llguidance: a slot is one terminal, so that no sentence is cut too early."""
    trees, choices = _trees(spec), dict[str, str]()
    lines = ["start: " + " | ".join(' " " '.join(order) for order in spec.slots)]
    for slot, ids in spec.frames:
        names = {each: each.replace(".", "_").upper() for each in ids}
        lines.append(f"{slot}: {' | '.join(names.values())}")
        lines += [f"{name}: {_lark(trees[each], choices)}" for each, name in names.items()]
    lines += [f"{name}: {text}" for text, name in choices.items()]
    return "\n".join(lines) + "\n"


def derive(spec: Spec, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    """A reply drawn at random, and the ids of its frames.

    >>> text, frames = derive(spec_for(Level.HIGH, [], []), random.Random(1))
    >>> frames[0].startswith("ACK."), text.endswith(".")
    (True, True)
    """
    ids, trees = dict(spec.frames), _trees(spec)
    frames = tuple(rng.choice(ids[slot]) for slot in rng.choice(spec.slots))
    return " ".join(_draw(trees[each], rng) for each in frames), frames


def frames_of(spec: Spec, text: str) -> tuple[str, ...] | None:
    """The ids of the frames that a decoded reply was made with; None for a text outside the grammar."""
    ids, trees, sentences = dict(spec.frames), _trees(spec), _SENTENCE.split(text)
    for order in spec.slots:
        if len(order) != len(sentences):
            continue
        found = [
            next((each for each in ids[slot] if len(sentence) in _ends(trees[each], sentence, 0)), None)
            for slot, sentence in zip(order, sentences, strict=True)
        ]
        if None not in found:
            return tuple(each for each in found if each)
    return None


def num_derivations(spec: Spec) -> int:
    """How many ways there are through the grammar; hardly any two give the same text."""
    trees = _trees(spec)
    counts = {slot: sum(_count(trees[each]) for each in ids) for slot, ids in spec.frames}
    return sum(math.prod(counts[slot] for slot in order) for order in spec.slots)


@cache
def _table() -> Mapping[str, Any]:
    text = files("warmline.safety.grammar").joinpath("en.yaml").read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _feelings(emotions: Sequence[str], dropped: Collection[str]) -> tuple[str, ...]:
    table = _table()
    found: list[str] = []
    for emotion in emotions:
        name = emotion.strip().lower()
        named = [key for key, words in table["feelings"].items() if name in (key, *words["adj"], *words["noun"])]
        found += table["labels"].get(name, named)
    return tuple(name for name in dict.fromkeys(found) if name not in dropped)[:MAX_FEELINGS]


@lru_cache(maxsize=64)
def _trees(spec: Spec) -> Mapping[str, Node]:
    """The frames of a turn by id, with the parts for its theme and age and the words for its feelings."""
    table = _table()
    keys = (*((f"{spec.theme}_minor", "minor") if spec.minor else ()), spec.theme, "default")
    texts = {name: next(each[key] for key in keys if key in each) for name, each in table["parts"].items()}
    words = {name: table["feelings"][name] for name in spec.feelings}
    texts["noun1"] = _either(word for each in words.values() for word in each["noun"])
    texts["adj"] = _one_or_two({name: each["adj"] for name, each in words.items()})
    texts["noun"] = _one_or_two({name: each["noun"] for name, each in words.items()})
    parts: dict[str, Node] = {}
    for name in texts:
        _part(name, texts, parts)
    ids = [each.split(".") for _, ids in spec.frames for each in ids]
    return {".".join(each): _tree(table["slots"][each[0]][each[1]][int(each[2])], texts, parts) for each in ids}


def _either(texts: Iterable[str]) -> str:
    return f"({'|'.join(texts)})"


def _one_or_two(words: Mapping[str, Sequence[str]]) -> str:
    """A word, or two of different families."""
    others = {name: [word for other in words if other != name for word in words[other]] for name in words}
    twos = [f"{_either(each)} and {_either(others[name])}" for name, each in words.items() if others[name]]
    return _either([*map(_either, words.values()), *twos])


def _part(name: str, texts: Mapping[str, str], parts: dict[str, Node]) -> Node:
    if name not in parts:
        parts[name] = _tree(texts[name], texts, parts)
    return parts[name]


def _tree(text: str, texts: Mapping[str, str], parts: dict[str, Node]) -> Node:
    """What a frame says; `parts` are those of `texts` that were read before.

    >>> _tree("so (hard|{sad})", {"sad": "low"}, {})
    ('so ', (('hard',), (('low',),)))
    """
    pieces = _PIECE.findall(text)
    stack: list[list[list[Node]]] = [[[]]]  # choices that are open -> their options so far -> nodes
    for piece in pieces:
        if piece == "(":
            stack.append([[]])
        elif piece == "|":
            stack[-1].append([])
        elif piece == ")" and len(stack) > 1:
            choice = Choice(map(Row, stack.pop()))
            stack[-1][-1].append(choice)
        elif piece[0] == "{":
            part = _part(piece.strip("{^}"), texts, parts)
            stack[-1][-1].append(_capital(part) if piece[1] == "^" else part)
        else:
            stack[-1][-1].append(piece)
    if "".join(pieces) != text or len(stack) > 1 or len(stack[0]) > 1 or ")" in stack[0][0]:
        raise GrammarError(f"{text!r}: brackets, braces or bars that do not fit together")
    return Row(stack[0][0])


def _capital(node: Node) -> Node:
    """A part that begins a sentence; it must not begin with something that may be left out."""
    if isinstance(node, str):
        return node[:1].upper() + node[1:]
    return Choice(map(_capital, node)) if isinstance(node, Choice) else Row((_capital(node[0]), *node[1:]))


def _draw(node: Node, rng: random.Random) -> str:
    if isinstance(node, Choice):
        return _draw(rng.choice(node), rng)
    return node if isinstance(node, str) else "".join(_draw(each, rng) for each in node)


def _count(node: Node) -> int:
    if isinstance(node, str):
        return 1
    return sum(map(_count, node)) if isinstance(node, Choice) else math.prod(map(_count, node))


def _ends(node: Node, text: str, start: int) -> set[int]:
    """Where in `text` a node can end that begins at `start`."""
    if isinstance(node, str):
        return {start + len(node)} if text.startswith(node, start) else set()
    if isinstance(node, Choice):
        return {end for each in node for end in _ends(each, text, start)}
    ends = {start}
    for each in node:
        ends = {last for end in ends for last in _ends(each, text, end)}
    return ends


def _lark(node: Node, choices: dict[str, str]) -> str:
    """A node as a Lark expression; each choice becomes a terminal, once for all places where it stands."""
    if isinstance(node, str):
        return f'"{node}"'
    if isinstance(node, Row):
        return " ".join(_lark(each, choices) for each in node)
    text = f"({' | '.join(_lark(each, choices) for each in node if each)})"
    return choices.setdefault(text if all(node) else f"{text}?", f"CHOICE_{len(choices)}")
