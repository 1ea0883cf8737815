"""Made-up EQ-Bench questions in the two layouts, and answers of many forms."""

import json
import random
from pathlib import Path

from warmline.evaluate.eq_bench_questions import Question, questions_from

WORDS = ("Anger", "Joy", "Pity", "Calm", "Shame", "Pride", "Relief", "Envy")
PROMPT = """
Your task is to predict the likely emotional responses of a character in this dialogue:

Ada: We missed the train, scene {scene}.
Ben: Then we walk.
[End dialogue]

At the end of this dialogue, Ada would feel...
{names}

Give each of these possible emotions a score from 0-10 for the relative intensity that they are likely to be feeling each. Then critique your answer by thinking it through step by step. Finally, give your revised scores.

You must output in the following format, including headings (of course, you should give your own scores), with no additional commentary:

First pass scores:
{first}

Critique: <your critique here>

Revised scores:
{revised}

[End of answer]

Remember: zero is a valid score, meaning they are likely not feeling that emotion. You must score at least one emotion > 0.
"""


def original_rows(count: int, seed: int = 0) -> dict[str, dict[str, object]]:
    """Rows as in the original file: references mix numbers and text."""
    rng = random.Random(seed)
    rows: dict[str, dict[str, object]] = {}
    for number in range(1, count + 1):
        names = rng.sample(WORDS, 4)
        reference: dict[str, object] = {f"emotion{at}": name for at, name in enumerate(names, start=1)}
        for at in range(1, 5):
            score = rng.randint(0, 9)
            reference[f"emotion{at}_score"] = score if rng.random() < 0.4 else str(score)
        prompt = PROMPT.format(
            scene=number // 3,
            names="\n".join(names),
            first="\n".join(f"{name}: <score>" for name in names),
            revised="\n".join(f"{name}: <revised score>" for name in names),
        )
        rows[str(number)] = {"prompt": prompt, "reference_answer": {}, "reference_answer_fullscale": reference}
    return rows


def hub_rows(rows: dict[str, dict[str, object]]) -> list[dict[str, object]]:
    """The same as in the hub copy: no ids, references as the text of a Python literal."""
    return [row | {"reference_answer_fullscale": repr(row["reference_answer_fullscale"])} for row in rows.values()]


def toy_questions(count: int, seed: int = 0) -> tuple[Question, ...]:
    return questions_from(original_rows(count, seed).items())


def write_lines(file: Path, rows: object) -> Path:
    assert isinstance(rows, list)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def plain(question: Question, scores: object) -> str:
    """An answer in the form that the prompt asks for."""
    assert isinstance(scores, list | tuple)
    return "\n".join(f"{name}: {score}" for name, score in zip(question.emotions, scores, strict=True))


def any_answer(question: Question, rng: random.Random) -> str:
    """An answer of a model that may be good, sloppy, wordy or broken."""
    scores = [rng.choice((rng.randint(0, 10), rng.randint(0, 10), 12, 100, "7.5", "high")) for _ in range(4)]
    if rng.random() < 0.7:
        scores = [rng.randint(0, 10) for _ in range(4)]
    names = list(question.emotions)
    if rng.random() < 0.2:
        rng.shuffle(names)
    separator = rng.choice((": ", ": ", ": ", ":\t", ":", " - ", ":\n", "**: ", " : "))
    lines = [f"{name}{separator}{score}" for name, score in zip(names, scores, strict=True)]
    damage = rng.randrange(10)
    if damage == 0:
        lines.pop(rng.randrange(4))
    elif damage == 1:
        lines.append(f"{rng.choice(WORDS)}: {rng.randint(0, 10)}")
    elif damage == 2:
        lines.append("Total: 12")
    elif damage == 3:
        lines = [line.lower() for line in lines]
    elif damage == 4:
        lines = ["First pass scores:", *lines, "Critique: I was unsure.", "Revised scores:", *reversed(lines)]
    elif damage == 5:
        return rng.choice(("", "I cannot say.", "{}", "怒り: 7", "None: 0\n" * 4, "Anger: ٣"))
    return rng.choice(("\n", "\n", ", ", " ")).join(lines)
