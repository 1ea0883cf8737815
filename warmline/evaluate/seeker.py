"""A seeker without a model: lines written by the project, so that simulated talks run offline and are the same each time."""

import random
import re
from collections.abc import Iterator, Sequence

from warmline.engine.engine import Capability, Chunk, EngineError, GenerateRequest, Message, Scores

NAME = "scripted-seeker-1"  # stands in every talk; another script is another seeker
MIN_TURNS, MAX_TURNS = 4, 8  # of the seeker, its opening and its goodbye among them

ASKED = (  # what it says to a question
    "I don't really know how to answer that.",
    "A couple of weeks, maybe longer. It crept up on me.",
    "Mostly in the evenings, when everything goes quiet.",
    "No, I haven't told anyone else yet.",
    "Honestly? I think I was hoping it would go away on its own.",
    "It's hard to put into words. Heavy, I suppose.",
    "My sister knows a bit. Not all of it.",
    "I did try, once. It came out wrong.",
)
TOLD = (  # what it says to anything else
    "It's just been going round and round in my head.",
    "I keep thinking I should be handling this better.",
    "Some days are fine, and then it all comes back at once.",
    "You're the first one I've said this to.",
    "I don't want advice right now, I just needed to say it somewhere.",
    "Part of me is angry, and then I feel bad for being angry.",
    "I slept badly again, so that doesn't help.",
    "I even laughed about it yesterday, which felt strange.",
    "Everyone else seems to just get on with things.",
    "Maybe I'm making too much of it.",
)
GOODBYES = (
    "I have to go now, but thank you for listening. Bye!",
    "Okay. I'm going to make some tea and go to bed. Good night.",
    "That's enough for today, I think. Goodbye, and thanks.",
)
_ASKS = re.compile(r"\?\s*$")


class ScriptedSeeker:
    """Says its lines by the card, the talk's number and what was said: no line twice, and goodbye after four to eight.

    The system message and the number of the talk (its seed, turns apart) choose; a talk that goes on after a stop says
    what it would have said.
    """

    def __init__(self, seeds_a_talk: int) -> None:
        self._seeds_a_talk = seeds_a_talk

    def capabilities(self) -> frozenset[Capability]:
        """None beyond plain text."""
        return frozenset()

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        """The next line, whole."""
        system = next((each.content for each in request.messages if each.role == "system"), "")
        talk = (request.sampling.seed or 0) // self._seeds_a_talk
        draw = random.Random(f"{talk}/{system}")
        num_turns = draw.randint(MIN_TURNS, MAX_TURNS)
        goodbye = draw.choice(GOODBYES)
        asked, told = draw.sample(ASKED, len(ASKED)), draw.sample(TOLD, len(TOLD))
        said = [each.content for each in request.messages if each.role == "assistant"]
        if len(said) + 1 >= num_turns:
            yield Chunk(goodbye)
            return
        pool = asked if _ASKS.search(request.messages[-1].content) else told
        yield Chunk(next(line for line in pool if line not in said))

    def score(self, messages: Sequence[Message], reply: str) -> Scores:  # noqa: ARG002 - an engine's
        """Raises EngineError: lines have no likelihood."""
        raise EngineError("a scripted seeker has no log-probabilities")
