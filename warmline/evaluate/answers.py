"""Who answers the samples of a task: an engine, many at once where it can, or the companion as people meet it."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from warmline.dialogue.companion import Answer, Setting, respond, resume
from warmline.engine.engine import BatchEngine, Chunk, Engine, EngineError, GenerateRequest, Message, Sampling, whole
from warmline.evaluate.task import Failure, Reply, Sample
from warmline.safety.resources.card import Card
from warmline.safety.validate.context import Turn

GREEDY = Sampling(temperature=0, max_new_tokens=192)


@dataclass(frozen=True)
class FromEngine:
    """Replies of an engine: together where it writes batches, else one by one. `sampling` has no seed: 0."""

    engine: Engine
    system_prompt: str | None = None
    sampling: Sampling = GREEDY
    about: Mapping[str, Any] = field(default_factory=dict)  # what else identifies the answers, as model and dtype

    @property
    def decoding(self) -> dict[str, Any]:
        """The sampling, the system prompt and what the caller says of the model."""
        return {**_as_json(self.sampling), "system_prompt": self.system_prompt, **self.about}

    def __call__(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Reply | Failure]]:
        """Each sample with its reply; what the engine refuses is a failure with the engine's reason."""
        system = (Message("system", self.system_prompt),) if self.system_prompt else ()
        requests = [
            GenerateRequest((*system, *sample.messages), seeded(self.sampling, sample.id)) for sample in samples
        ]
        if isinstance(self.engine, BatchEngine):
            for index, written in self.engine.generate_batch(requests):
                yield samples[index], _as_reply(written)
            return
        for sample, request in zip(samples, requests, strict=True):
            try:
                yield sample, _as_reply(whole(self.engine.generate(request)))
            except EngineError as error:
                yield sample, _as_reply(error)


def _as_reply(written: Chunk | EngineError) -> Reply | Failure:
    if isinstance(written, EngineError):
        return Failure(str(written))
    return Reply(written.text.strip(), {"notes": [*written.notes]} if written.notes else {})


@dataclass(frozen=True)
class FromCompanion:
    """Replies as people meet them: every sample in a session of its own, read, guarded and released.

    `meta` of a reply: `level`, `domains`, `reply_source`, whether a `card` was shown, `notice` (the app's own words, where
    there is no reply) and what was `degraded`.
    """

    setting: Setting
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def decoding(self) -> dict[str, Any]:
        """The setting's sampling and system prompt; what the levels change is the companion's."""
        setting = self.setting
        return {
            **_as_json(setting.sampling),
            "system_prompt": setting.system_prompt,
            "companion": True,
            "country": setting.country,
            **self.about,
        }

    def __call__(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Reply | Failure]]:
        """Each sample with what the companion released."""
        return ((sample, self._reply(sample)) for sample in samples)

    def _reply(self, sample: Sample) -> Reply | Failure:
        *before, last = [message for message in sample.messages if message.role != "system"] or [None]
        if last is None or last.role != "user":
            return Failure("the conversation does not end on a user turn")
        setting = replace(self.setting, sampling=seeded(self.setting.sampling, sample.id))
        times = sample.about.get("times") or [0.0] * len(sample.messages)  # seconds, where the sample says them
        session = resume(setting, [Turn(message.role, message.content) for message in before if message], times)
        answer, shown, cards = None, [], 0
        for each in respond(setting, session, last.content, 0.0 if times[-1] is None else times[-1]):
            if isinstance(each, Answer):
                answer = each
            elif isinstance(each, Card):
                cards += 1
            else:
                shown.append(str(each))
        assert answer is not None, "respond ends with its Answer"
        meta: dict[str, Any] = {
            "level": answer.level.label,
            "domains": sorted(answer.domains),
            "reply_source": answer.reply_source,
            "card": cards > 0,
        }
        if answer.reply_source == "notice":
            meta["notice"] = " ".join(shown)
        if answer.degraded:
            meta["degraded"] = sorted(answer.degraded)
        return Reply(answer.reply, meta)


def seeded(sampling: Sampling, sample_id: str) -> Sampling:
    """The sampling with a seed of the sample's own: a draw is the same whatever else is answered, and when."""
    digest = hashlib.blake2b(f"{sampling.seed or 0}/{sample_id}".encode(), digest_size=4).digest()
    return replace(sampling, seed=int.from_bytes(digest, "big"))


def _as_json(sampling: Sampling) -> dict[str, Any]:
    return {**asdict(sampling), "seed": sampling.seed or 0, "stop": list(sampling.stop)}
