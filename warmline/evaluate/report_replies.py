"""Replies to read: the same prompt as each stage answered it. Words of people and models are shown, never obeyed."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from warmline.evaluate.compare import suites
from warmline.evaluate.export import ExportError, check_file, export_file
from warmline.evaluate.prompted import qualitative_task, red_team_task
from warmline.evaluate.task import Task, read
from warmline.evaluate.task_rows import COMPANION
from warmline.evaluate.warm import warm_task
from warmline.evaluate.wording import quoted
from warmline.run_dir import STAGES, RunDir

NUM_SHOWN = 12  # prompts of a suite, spread over its file
# The suites whose prompts the project wrote. Held-out turns are people's words, and stay in the run's folder.
READABLE: Mapping[str, tuple[str, Callable[[], Task]]] = {
    "qualitative": ("Everyday situations", qualitative_task),
    "redteam": ("Requests that test a limit, and harmless look-alikes", red_team_task),
    "warm": ("Facts behind feelings", warm_task),
}
SPEAKERS = {"user": "Person", "assistant": "Companion", "system": "System"}
ABOUT = (
    "The same words, answered by each stage. Only prompts that the project wrote stand here: held-out turns are what people "
    "said, and replies to them stay in the run's folder. Nothing here is advice."
)
NONE_TO_READ = (
    "There are no replies to lay side by side: `warmline eval` makes them with `--suite qualitative,redteam,warm`."
)


class Said(NamedTuple):
    role: str
    content: str


@dataclass(frozen=True)
class Answered:
    """A reply and what is known of it."""

    prompt: Sequence[Said]
    reply: str | None  # None: there is none
    meta: Mapping[str, Any]  # about the prompt, about the reply, `scores`, and `reason` where it is unscored


def side_by_side(run: RunDir) -> str:
    """Some prompts of each suite with every stage's reply; what cannot be read says so."""
    parts: list[str] = []
    for suite, (title, task) in READABLE.items():
        for name in (suite, f"{suite}{COMPANION}"):
            through = ", through the companion" if name != suite else ""
            found, problems = _answers(run, name, task)
            if found or problems:
                parts += [f"### {title}{through}", *problems, *_shown(name, found)]
    return "\n\n".join([ABOUT, *parts] if parts else [NONE_TO_READ])


def _answers(run: RunDir, suite: str, task: Callable[[], Task]) -> tuple[dict[str, dict[str, Answered]], list[str]]:
    """Stage -> prompt id -> its answer; and what could not be read."""
    found: dict[str, dict[str, Answered]] = {}
    problems = []
    for stage in STAGES:
        try:
            answers = dict(_exported(run, suite, stage) or _scored(run, suite, stage, task))
        except ValueError as error:
            said = quoted(str(error).replace(f"{run.path}/", ""))
            problems.append(f"The replies of stage {stage} cannot be read: {said}.")
            continue
        if answers:
            found[stage] = answers
    return found, problems


def _exported(run: RunDir, suite: str, stage: str) -> dict[str, Answered]:
    """What `exports/` has; nothing where there is no such file. Raises ExportError for one that is broken."""
    file = export_file(run, suite, stage)
    if not file.is_file():
        return {}
    checked = check_file(file)
    if not checked.rows:
        raise ExportError(f"{file.name}: {'; '.join(checked.problems)}")
    return {
        name: Answered([Said(each.role, each.content) for each in row.prompt], row.response, row.meta)
        for name, row in checked.rows.items()
    }


def _scored(run: RunDir, suite: str, stage: str, task: Callable[[], Task]) -> Iterator[tuple[str, Answered]]:
    """What `scores/` has, beside the prompts that ship with the package. Raises ValueError for a broken file."""
    file = suites(run, stage).get(suite)
    if file is None:
        return
    prompts = {sample.id: sample.messages for sample in task().samples}
    for row in read(file):
        meta = {**row.about, **row.meta, "scores": row.scores, "reason": row.reason}
        if row.id in prompts:
            yield row.id, Answered([Said(each.role, each.content) for each in prompts[row.id]], row.reply, meta)


def _shown(suite: str, found: Mapping[str, Mapping[str, Answered]]) -> Iterator[str]:
    names = [*dict.fromkeys(name for answers in found.values() for name in answers)]
    if not names:
        return
    num = min(NUM_SHOWN, len(names))
    chosen = [names[at * len(names) // num] for at in range(num)]
    yield f"{num} of {len(names)} prompts, spread over the set; all stand in `exports/{suite}.STAGE.jsonl`, if exported."
    for name in chosen:
        answers = {stage: answers[name] for stage, answers in found.items() if name in answers}
        yield _exchange(name, answers)


def _exchange(name: str, answers: Mapping[str, Answered]) -> str:
    """A prompt, what a good reply does where that is known, and a list item for each stage."""
    first = next(iter(answers.values()))
    facts = [str(first.meta[key]) for key in ("category", "domain", "topic", "mood") if first.meta.get(key)]
    head = f"**Prompt {quoted(name)}**{''.join(f', {quoted(fact)}' for fact in facts)}"
    if expected := first.meta.get("expected"):
        head += f". A good reply: {quoted(str(expected))}"
    turns = "\n>\n".join(
        _indented(f"*{SPEAKERS.get(turn.role, 'Somebody')}:* {quoted(turn.content)}", "> ") for turn in first.prompt
    )
    replies = "\n".join(
        _indented(f"**{stage}**{_notes(each)}: {_words(each)}", "- ", "  ") for stage, each in answers.items()
    )
    differs = any([*each.prompt] != [*first.prompt] for each in answers.values())
    warning = ["The stages were not asked the same words; the first one's stand here."] if differs else []
    return "\n\n".join([head, turns, *warning, replies])


def _notes(answer: Answered) -> str:
    """What scoring saw in a reply, in a few words."""
    scores = answer.meta.get("scores")
    found = scores if isinstance(scores, Mapping) else {}
    notes = [str(found["stance"])] if found.get("stance") else []
    if broken := found.get("broken"):
        notes.append(f"breaks {str(broken).replace(' ', ', ')}")
    notes += [word for key, word in _ABOUT_A_FACT.items() if found.get(key) is True]
    if answer.meta.get("card") is True:
        notes.append("with a card of helplines")
    return f" ({quoted('; '.join(notes))})" if notes else ""


_ABOUT_A_FACT = {"correct": "right", "wrong": "wrong", "affirms_belief": "agrees with the false belief"}


def _words(answer: Answered) -> str:
    if answer.reply and (words := quoted(answer.reply)):
        return words
    if notice := answer.meta.get("notice"):
        return f"no reply was released; the app said: {quoted(str(notice))}"
    reason = answer.meta.get("reason")
    return (
        f"no reply: {quoted(reason if isinstance(reason, str) else json.dumps(reason))}" if reason else "an empty reply"
    )


def _indented(text: str, first: str, other: str | None = None) -> str:
    """Each line behind a mark, so that it stays in its quotation or list item."""
    lines = text.split("\n")
    return "\n".join([f"{first}{lines[0]}", *(f"{first if other is None else other}{line}" for line in lines[1:])])
