"""ESConv (Liu et al. 2021): emotional support conversations whose supporter turns carry a strategy."""

from collections.abc import Iterator

from warmline.data.conversation import Conversation, Role, Split, Turn
from warmline.data.sources.hub import hub_rows
from warmline.data.sources.reading import (
    Rejections,
    conversations,
    is_local,
    parse_object,
    read_lines,
    split_file,
    spoken,
    take,
)

HUB_ID = "thu-coai/esconv"  # one column `text`: the same JSON object that a line of the local files holds
ROLES: dict[str, Role] = {"usr": "user", "sys": "assistant"}


def esconv(location: str | None, split: Split, rejections: Rejections) -> Iterator[Conversation]:
    """Conversations from a folder with {train,valid,test}.txt, or from the hub."""
    location = location or HUB_ID
    if is_local(location):
        lines = read_lines(split_file(location, split, ".txt"))
    else:
        rows = hub_rows("esconv", location, split, ("text",))
        lines = ((number, row["text"]) for number, row in enumerate(rows, 1) if row["text"])
    units = ((f"{split}:{number}", line) for number, line in lines)
    yield from conversations("esconv", split, units, turns_of, rejections)


def turns_of(line: str) -> Iterator[Turn | str]:
    """The turns of one conversation, and nothing of its metadata.

    >>> list(turns_of('{"problem_type": "noise", "dialog": [{"text": "Too loud?", "speaker": "sys", "strategy": "Question"}]}'))
    [Turn(role='assistant', text='Too loud?', emotions=(), situation=None, strategy=('Question',), risk=None, affect=None)]
    """
    for said in take(parse_object(line), "dialog", list):
        speaker = take(said, "speaker", str)
        if speaker not in ROLES:
            raise ValueError(f"speaker {speaker!r} is not one of {', '.join(ROLES)}")
        strategy = (take(said, "strategy", str),) if said.get("strategy") else ()
        yield spoken(ROLES[speaker], take(said, "text", str), strategy=strategy)
