"""How far a package is from the stage it was made of: on the same conversations, read by both."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from warmline.data.batches import collate, micro_batches
from warmline.data.conversation import Conversation
from warmline.data.labels import HeadSpec
from warmline.data.sources.bundled import bundled
from warmline.data.sources.reading import Rejections
from warmline.data.tokenize import Encoder, Example
from warmline.model.heads import values
from warmline.model.support_model import SupportModel
from warmline.package.subject import PackageError, Subject

BATCH_TOKENS = 1024
CHUNK = 256  # positions whose logits exist at one time
NUM_TALKS = 12  # conversations with replies; every single message is read too
CLOSE = 0.05  # a regression head agrees where its value is that near


class Drift(NamedTuple):
    """All against the adapter on its base, as it was trained."""

    on: str  # which conversations
    num_conversations: int
    num_positions: int  # tokens of replies
    kl: float  # mean KL(adapter || package), nats per token
    kl_max: float
    top1: float  # share of positions with the same likeliest token
    num_readings: int  # decision points
    heads: Mapping[str, float]  # share of decision points that a head reads alike
    heads_max: float  # the largest difference of any of their values


class States(NamedTuple):
    """What a model makes of the examples: enough to compare it with another that is loaded later."""

    hidden_ND: Tensor
    weight_VD: Tensor  # of lm_head
    heads: Mapping[str, Tensor]  # [A, labels]


def bundled_examples(subject: Subject) -> list[Example]:
    """The test split of the bundled corpus as the recipe renders it: no run trains on it."""
    read = list(bundled(None, "test", Rejections()))
    talks = [talk for talk in read if _has_reply(talk)][:NUM_TALKS]
    single = [talk for talk in read if not _has_reply(talk)]
    model = subject.recipe.model
    encoder = Encoder(subject.tokenizer, model.max_seq_len, model.system_prompt)
    examples = [example for talk in (*talks, *single) for example in encoder.examples(talk)]
    if not examples:
        raise PackageError(f"model.max_seq_len {model.max_seq_len} is too short for any bundled conversation: no drift")
    return examples


@torch.inference_mode()
def states_of(model: SupportModel, examples: Sequence[Example], pad_id: int) -> States:
    """One pass over the examples with the stage in use."""
    hidden, heads = [], []
    specs = model.specs[model.stage]
    for group in micro_batches(examples, BATCH_TOKENS):
        out = model(collate(group, {}, pad_id=pad_id).to(model.device))
        hidden.append(out.hidden_ND.float().cpu())
        heads.append({name: values(spec, out.heads[name]).cpu() for name, spec in specs.items()})
    weight_VD = model.lm_weight_VD.detach().float().cpu()
    return States(torch.cat(hidden), weight_VD, {name: torch.cat([each[name] for each in heads]) for name in specs})


@torch.inference_mode()
def drift_of(reference: States, package: States, specs: Mapping[str, HeadSpec], num_conversations: int) -> Drift:
    """Raises PackageError if the package gives numbers that are none."""
    kls, same = [], []
    for ours_ND, theirs_ND in zip(reference.hidden_ND.split(CHUNK), package.hidden_ND.split(CHUNK), strict=True):
        ours_NV = (ours_ND @ reference.weight_VD.T).log_softmax(-1)
        theirs_NV = (theirs_ND @ package.weight_VD.T).log_softmax(-1)
        kls.append((ours_NV.exp() * (ours_NV - theirs_NV)).sum(-1))
        same.append(ours_NV.argmax(-1) == theirs_NV.argmax(-1))
    kl_N, same_N = torch.cat(kls).clamp(min=0), torch.cat(same)
    if not kl_N.isfinite().all():
        raise PackageError(
            "the package gives logits that are no numbers: 16 bits are too few for this base, try float32"
        )
    gaps = [(reference.heads[name] - package.heads[name]).abs() for name in specs]
    return Drift(
        on="the test split of the bundled corpus",
        num_conversations=num_conversations,
        num_positions=len(kl_N),
        kl=float(kl_N.mean()) if len(kl_N) else 0.0,
        kl_max=float(kl_N.max()) if len(kl_N) else 0.0,
        top1=float(same_N.float().mean()) if len(kl_N) else 1.0,
        num_readings=len(next(iter(reference.heads.values()))) if specs else 0,
        heads={name: _agreement(spec, reference.heads[name], package.heads[name]) for name, spec in specs.items()},
        heads_max=max((float(gap.max()) for gap in gaps), default=0.0),
    )


def _agreement(spec: HeadSpec, ours_AK: Tensor, theirs_AK: Tensor) -> float:
    if spec.kind == "regression":
        return float(((ours_AK - theirs_AK).abs() <= CLOSE).all(-1).float().mean())
    return float((ours_AK.argmax(-1) == theirs_AK.argmax(-1)).float().mean())


def _has_reply(talk: Conversation) -> bool:
    return any(turn.role == "assistant" for turn in talk.turns)
