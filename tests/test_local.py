"""The engine that holds the weights: its text is transformers' own, and readings, scores and limits are what they say."""

import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from warmline.config.training import BaseSettings, LoraSettings, ModelSettings
from warmline.data.conversation import Conversation, Turn
from warmline.data.labels import AFFECTS, IGNORE, RISKS, HeadSpec
from warmline.data.tokenize import Encoder
from warmline.engine.engine import Chunk, Engine, EngineError, GenerateRequest, Message, Reading, Sampling
from warmline.engine.local import LocalEngine
from warmline.model.load import ModelError, load_base, load_tokenizer
from warmline.model.support_model import SupportModel
from warmline.model.tiny import build_model, train_tokenizer

SPECS = {
    "emotion": HeadSpec("softmax", ("anger", "joy", "fear")),
    "risk": HeadSpec("ordinal", RISKS),
    "affect": HeadSpec("regression", AFFECTS),
}
HELLO = (Message("system", "Listen."), Message("user", "I lost my job today."))
ANSWER = "I hear you 🫂, ça fait mal. 痛い! Tell me more."
GREEDY = Sampling(temperature=0, max_new_tokens=120)


def load(base: Path) -> SupportModel:
    return SupportModel(load_base(base, ModelSettings(base=str(base)), torch.device("cpu")), "float32")


def with_stage(base: Path, scale: float = 0.1) -> SupportModel:
    """The base and a stage `sft` whose adapter and heads have weights of their own."""
    model = load(base)
    model.add_stage("sft", LoraSettings(r=4, alpha=8, dropout=0.1), SPECS, "toy")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, scale)
    return model


def teach(model: Any, tokenizer: Any, prompt: Sequence[Message], answer: str) -> None:
    """Train all weights until the answer to `prompt` is certain."""
    messages = [each._asdict() for each in prompt]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text + answer + tokenizer.eos_token, return_tensors="pt", add_special_tokens=False)["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loss = float("inf")
    for _ in range(200):
        if loss < 0.02:
            return
        output = model(ids, labels=ids)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        loss = float(output.loss.detach())
    raise AssertionError(f"the toy did not learn its answer: loss {loss:.3f}")


@pytest.fixture(scope="module")
def taught(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy base after it has learned to answer HELLO with ANSWER."""
    folder = tmp_path_factory.mktemp("taught")
    shutil.copytree(toy_base, folder, dirs_exist_ok=True)
    model: Any = load(folder).causal.requires_grad_(True)
    teach(model, load_tokenizer(folder), HELLO, ANSWER)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def talker(taught: Path) -> LocalEngine:
    return LocalEngine(load(taught), load_tokenizer(taught))


@pytest.fixture(scope="module")
def model(toy_base: Path) -> SupportModel:
    return with_stage(toy_base)


@pytest.fixture(scope="module")
def tokenizer(toy_base: Path) -> Any:
    return load_tokenizer(toy_base)


@pytest.fixture(scope="module")
def sft(model: SupportModel, tokenizer: Any) -> LocalEngine:
    return LocalEngine(model, tokenizer, "sft")


def texts(chunks: Iterable[Chunk]) -> list[str]:
    replies: dict[int, str] = defaultdict(str)
    for chunk in chunks:
        replies[chunk.index] += chunk.text
    return [replies[index] for index in sorted(replies)]


def reply(engine: Engine, messages: Sequence[Message] = HELLO, **sampling: Any) -> str:
    return texts(engine.generate(GenerateRequest(tuple(messages), replace(GREEDY, **sampling))))[0]


def prompt_ids(tokenizer: Any, messages: Sequence[Message]) -> torch.Tensor:
    as_dicts = [message._asdict() for message in messages]
    text = tokenizer.apply_chat_template(as_dicts, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]


def near(found: Sequence[Reading], expected: Sequence[Reading]) -> bool:
    """Equal but for rounding: a pass with a cache, and over a longer text, sums in another order."""
    assert [each[:2] for each in found] == [each[:2] for each in expected]
    return all(a.values == pytest.approx(b.values, abs=1e-5) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("stage", ["base", "sft"])
@pytest.mark.parametrize("content", ["I lost my job today.", "hello", "It hurts , and I feel so alone here"])
def test_greedy_text_is_that_of_transformers_generate(
    stage: str, content: str, model: SupportModel, tokenizer: Any
) -> None:
    messages = [Message("user", content)]
    engine = LocalEngine(model, tokenizer, stage)
    found = reply(engine, messages, max_new_tokens=32)
    ids = prompt_ids(tokenizer, messages)
    options = {"do_sample": False, "max_new_tokens": 32, "attention_mask": torch.ones_like(ids)}
    model.use(stage)
    with torch.no_grad(), model.adapter_off() if stage == "base" else torch.no_grad():
        expected = model.causal.generate(input_ids=ids, **options)[0, ids.shape[1] :]
    assert found
    # a character that the limit cut in two is left out
    assert found == tokenizer.decode(expected, skip_special_tokens=True).rstrip("\ufffd")


def test_a_reply_stops_at_its_end_of_turn(talker: LocalEngine, tokenizer: Any) -> None:
    assert reply(talker) == ANSWER
    num_tokens = len(tokenizer(ANSWER)["input_ids"])
    assert reply(talker, max_new_tokens=num_tokens) == ANSWER
    assert reply(talker, max_new_tokens=num_tokens - 1) == ANSWER[:-1]


def test_characters_of_several_tokens_come_whole(talker: LocalEngine, tokenizer: Any) -> None:
    assert len(tokenizer("🫂")["input_ids"]) == 4
    pieces = [chunk.text for chunk in talker.generate(GenerateRequest(HELLO, GREEDY))]
    assert {"🫂", "痛"} <= {piece.strip() for piece in pieces}
    assert "\ufffd" not in "".join(pieces)
    # however early it is cut, a reply ends on a whole character
    for limit in range(1, len(tokenizer(ANSWER)["input_ids"])):
        assert ANSWER.startswith(reply(talker, max_new_tokens=limit))


def test_the_number_of_new_tokens_is_held(model: SupportModel, sft: LocalEngine, tokenizer: Any) -> None:
    shapes: list[tuple[int, ...]] = []
    hook = model.causal.get_base_model().model.register_forward_pre_hook(
        lambda _module, _args, options: shapes.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    try:
        list(sft.generate(GenerateRequest(HELLO, Sampling(seed=0, temperature=2, top_p=1, max_new_tokens=5), n=3)))
    finally:
        hook.remove()
    # one prefill for all three replies, whose last token is read by no one
    assert shapes == [tuple(prompt_ids(tokenizer, HELLO).shape), *[(3, 1)] * 4]


def test_the_same_seed_gives_the_same_reply_and_another_another(sft: LocalEngine) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 16}
    first = reply(sft, seed=3, **options)
    assert reply(sft, seed=3, **options) == first
    assert len({first, *(reply(sft, seed=seed, **options) for seed in (4, 5))}) == 3
    assert len({reply(sft, **options) for _ in range(4)}) > 1, "without a seed every reply is drawn anew"
    greedy = reply(sft, max_new_tokens=16)
    assert greedy not in {first, ""}
    assert reply(sft, seed=9, max_new_tokens=16) == greedy, "at temperature 0 nothing is drawn"
    for tiny in (1e-4, 1e-50):
        assert reply(sft, seed=9, max_new_tokens=16, temperature=tiny) == greedy


def test_several_greedy_replies_are_each_the_single_one(sft: LocalEngine, talker: LocalEngine) -> None:
    for engine in (sft, talker):
        assert texts(engine.generate(GenerateRequest(HELLO, GREEDY, n=3))) == [reply(engine)] * 3


def test_several_drawn_replies_differ_and_repeat_with_their_seed(sft: LocalEngine) -> None:
    request = GenerateRequest(HELLO, Sampling(temperature=1.0, top_p=1.0, max_new_tokens=12, seed=1), n=3)
    replies = texts(sft.generate(request))
    assert len(set(replies)) == 3
    assert texts(sft.generate(request)) == replies


def test_a_reply_that_ends_says_no_more_while_the_others_go_on(talker: LocalEngine) -> None:
    sampling = Sampling(temperature=1.3, top_p=1.0, max_new_tokens=60, seed=0)
    whole = texts(talker.generate(GenerateRequest(HELLO, sampling, n=6)))
    assert len({len(text) for text in whole}) > 1
    stopped = texts(talker.generate(GenerateRequest(HELLO, replace(sampling, stop=("a",)), n=6)))
    assert stopped == [text.split("a", maxsplit=1)[0] for text in whole] != whole


@pytest.mark.parametrize("stop", ["you 🫂", "Tell", "fait mal. 痛", "l", "I"])
def test_a_stop_text_ends_the_reply_wherever_the_pieces_were_cut(stop: str, talker: LocalEngine) -> None:
    assert reply(talker, stop=("never said", stop)) == ANSWER.split(stop, maxsplit=1)[0]


def test_the_beginning_of_a_stop_text_at_the_end_is_not_lost(talker: LocalEngine) -> None:
    assert reply(talker, stop=("more. And", "more!")) == ANSWER
    assert (
        texts(talker.generate(GenerateRequest(HELLO, Sampling(temperature=0, stop=("you",)), n=2))) == ["I hear "] * 2
    )


@pytest.mark.parametrize("prefill", ["I hear", "I hear you 🫂, ça"])
def test_a_prefill_is_gone_on_with_and_not_repeated(prefill: str, talker: LocalEngine) -> None:
    assert texts(talker.generate(GenerateRequest(HELLO, GREEDY, prefill=prefill)))[0] == ANSWER.removeprefix(prefill)


def test_the_space_after_a_prefill_is_kept_by_tokenizers_that_drop_leading_ones(tmp_path: Path) -> None:
    pieces = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))  # as Llama's and Phi-3's
    pieces.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")  # type: ignore[assignment]
    pieces.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    pieces.train_from_iterator(["I hear you now. user assistant said"], trainers.BpeTrainer(special_tokens=special))
    fast = PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = "{% for message in messages %}{{ message['content'] + '<|im_end|>' }}{% endfor %}<|im_start|>"
    settings = BaseSettings(sources=(), hidden_size=64, intermediate_size=128, num_layers=1)
    torch.manual_seed(0)
    causal = build_model(settings, fast, 64)
    prompt = (Message("user", "said"),)
    teach(causal, fast, prompt, "I hear you now.")
    engine = LocalEngine(SupportModel(causal.eval(), "float32"), fast)
    assert texts(engine.generate(GenerateRequest(prompt, GREEDY)))[0] == "I hear you now."
    assert texts(engine.generate(GenerateRequest(prompt, GREEDY, prefill="I hear")))[0] == " you now."


def test_readings_stand_on_the_first_chunk_and_are_those_of_a_score(sft: LocalEngine, talker: LocalEngine) -> None:
    first, *others = sft.generate(GenerateRequest(HELLO, Sampling(seed=0, max_new_tokens=8), n=2))
    assert [reading.head for reading in first.readings] == list(SPECS)
    assert others
    assert not any(chunk.readings or chunk.notes for chunk in others)
    assert all(len(set(reading.values)) > 1 for reading in first.readings)
    for said in ("", "I hear you.", "What happened then ? Thank you"):
        assert near(sft.score(HELLO, said).readings, first.readings)
    assert sft.score(HELLO, "")[:2] == (0.0, 0)
    assert talker.score(HELLO, "") == (0.0, 0, ())
    elsewhere = sft.score([Message("user", "Thank you for listening to me")], "").readings
    assert elsewhere[0].values != pytest.approx(first.readings[0].values, abs=1e-3)


@pytest.mark.parametrize("stage", ["base", "sft"])
@pytest.mark.parametrize("said", ["I hear you.", ANSWER, "  two  spaces\n\nand lines "])
def test_a_score_is_that_of_all_logits_at_once(stage: str, said: str, model: SupportModel, tokenizer: Any) -> None:
    prompt = prompt_ids(tokenizer, HELLO)
    answer = tokenizer(said + "<|im_end|>", return_tensors="pt")["input_ids"]
    score = LocalEngine(model, tokenizer, stage).score(HELLO, said)
    ids = torch.cat([prompt, answer], dim=1)
    with torch.no_grad(), model.adapter_off() if stage == "base" else torch.no_grad():
        log_probs = model.causal(ids).logits[0, :-1].log_softmax(-1)
    expected = log_probs.gather(1, ids[0, 1:, None])[prompt.shape[1] - 1 :].sum()
    assert score.num_tokens == answer.shape[1]
    assert score.logprob == pytest.approx(float(expected), rel=1e-5)


def test_a_score_is_the_loss_of_its_turn_in_the_one_pass_example(sft: LocalEngine, model: SupportModel) -> None:
    said = ["I lost my job today.", "It hurts 🫂", "I feel so alone here", ANSWER, "Thank you", "What happened then ?"]
    turns = tuple(Turn("assistant" if at % 2 else "user", text) for at, text in enumerate(said))
    encoder = Encoder(sft._tokenizer, 512, "Listen.", Counter())
    (example,) = encoder.examples(Conversation("c", "toy", turns))
    model.use("sft")
    with torch.no_grad():
        logits = model.causal(torch.from_numpy(example.input_ids)[None]).logits[0]
    labels = torch.from_numpy(example.labels)
    losses = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORE, reduction="none")
    assert len(example.anchors) == 3
    for number, anchor in enumerate(example.anchors):
        history = [Message(turn.role, turn.text) for turn in turns[: 2 * number + 1]]
        score = sft.score([Message("system", "Listen."), *history], turns[2 * number + 1].text)
        assert score.num_tokens == anchor.num_answer_tokens
        total = losses[anchor.position : anchor.position + anchor.num_answer_tokens].sum()
        assert score.logprob == pytest.approx(-float(total), rel=1e-5)


@pytest.mark.parametrize(
    ("turn", "said", "complaint"),
    [
        ("{{ m['content'] }}", ("I lost my j", "ob today."), "share a token"),
        ("{{ m['content'] }}{{ 'day' if m['role'] == 'assistant' }}", ("my job", " to"), "share a token"),
        ("{{ m['content'] }}", ("I lost my job", " today."), "no stop token"),
        ("{{ m['content'] | upper }}", ("I", "you"), "changes the prompt or the reply"),
    ],
)
def test_a_reply_that_the_template_does_not_set_apart_has_no_score(
    turn: str, said: tuple[str, str], complaint: str, model: SupportModel, toy_base: Path
) -> None:
    template = "{% for m in messages %}" + turn + "{% endfor %}"
    with pytest.raises(EngineError, match=complaint):
        LocalEngine(model, load_tokenizer(toy_base, template), "sft").score([Message("user", said[0])], said[1])


def test_a_prompt_that_is_read_otherwise_before_its_reply_has_no_score(model: SupportModel) -> None:
    fast = train_tokenizer(["my   "] * 3, 300)  # three spaces are one token, but two and one before a digit
    fast.chat_template = "{% for m in messages %}{{ m.content }}{{ '.' if loop.index == 2 else '   ' }}{% endfor %}"
    with pytest.raises(EngineError, match="reads the prompt otherwise"):
        LocalEngine(model, fast, "sft").score([Message("user", "job")], "1")


def short_of(base: Path, folder: Path, context: int) -> LocalEngine:
    """An engine of the same weights whose context is `context` tokens."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": context}), encoding="utf-8")
    return LocalEngine(with_stage(folder), load_tokenizer(folder), "sft")


LONG = (
    HELLO[0],
    *(Message("assistant" if at % 2 else "user", f"turn {at} of ours, and I feel so alone here") for at in range(9)),
)


def test_the_oldest_turns_are_left_out_and_the_system_message_kept(
    sft: LocalEngine, tokenizer: Any, toy_base: Path, tmp_path: Path
) -> None:
    kept = (LONG[0], *LONG[5:])
    room = 8
    context = prompt_ids(tokenizer, kept).shape[1] + room
    sampling = Sampling(temperature=0, max_new_tokens=room)
    for length in (context, context + 10):  # exactly enough, and not enough for one more pair
        engine = short_of(toy_base, tmp_path / str(length), length)
        chunks = list(engine.generate(GenerateRequest(LONG, sampling)))
        assert chunks[0].notes == ("the oldest 4 turns were left out: the context is full",)
        expected = list(sft.generate(GenerateRequest(kept, sampling)))
        assert texts(chunks) == texts(expected) != texts(sft.generate(GenerateRequest(LONG, sampling)))
        assert chunks[0].readings == expected[0].readings
        assert not any(chunk.notes for chunk in expected)
    one_less = short_of(toy_base, tmp_path / "less", context - 1)
    assert next(one_less.generate(GenerateRequest(LONG, sampling))).notes[0].startswith("the oldest 6 turns")


def test_what_cannot_fit_is_an_error(toy_base: Path, tmp_path: Path, tokenizer: Any) -> None:
    engine = short_of(toy_base, tmp_path / "short", 60)
    long = Message("user", "I feel so alone here " * 10)
    sampling = Sampling(max_new_tokens=8)
    with pytest.raises(EngineError, match=r"the last message is too long: \d+ tokens and 8 for the reply.*is 60"):
        engine.generate(GenerateRequest((*HELLO, Message("assistant", "Yes?"), long), sampling))
    with pytest.raises(EngineError, match="the last message is too long"):
        engine.generate(GenerateRequest(HELLO, Sampling(max_new_tokens=60)))
    for messages, said in ((LONG, ""), (HELLO, long.content)):  # a score leaves nothing out
        with pytest.raises(EngineError, match=r"prompt and reply are \d+ tokens, the context is 60"):
            engine.score(messages, said)
    num_prompt = prompt_ids(tokenizer, HELLO).shape[1]
    fits = Sampling(temperature=0, max_new_tokens=60 - num_prompt)
    assert texts(engine.generate(GenerateRequest(HELLO, fits)))[0]


def test_engines_of_two_stages_over_one_model_can_take_turns(
    model: SupportModel, sft: LocalEngine, tokenizer: Any
) -> None:
    base = LocalEngine(model, tokenizer, "base")
    request = GenerateRequest(HELLO, Sampling(seed=2, temperature=1.0, top_p=1.0, max_new_tokens=24))
    alone = [list(engine.generate(request)) for engine in (base, sft)]
    assert texts(alone[0]) != texts(alone[1])
    score = sft.score(HELLO, "I hear you.")
    taken: tuple[list[Chunk], list[Chunk]] = ([], [])
    for pair in zip_longest(base.generate(request), sft.generate(request)):
        for found, chunk in zip(taken, pair, strict=True):
            if chunk is not None:
                found.append(chunk)
        assert sft.score(HELLO, "I hear you.") == score
        assert base.score(HELLO, "I hear you.").readings == ()
    assert list(taken) == alone


def test_capabilities_name_heads_only_where_there_are_some(
    model: SupportModel, sft: LocalEngine, tokenizer: Any, toy_base: Path
) -> None:
    assert sft.capabilities() == {"logits", "n", "grammar", "heads"}
    assert LocalEngine(model, tokenizer, "base").capabilities() == {"logits", "n", "grammar"}
    bare = load(toy_base)
    bare.add_stage("sft", LoraSettings(r=2), {}, "toy")
    assert LocalEngine(bare, tokenizer, "sft").capabilities() == {"logits", "n", "grammar"}
    with pytest.raises(ModelError, match="stage 'dpo' is not loaded"):
        LocalEngine(model, tokenizer, "dpo")


def test_what_the_engine_cannot_do_is_refused(sft: LocalEngine, toy_base: Path, model: SupportModel) -> None:
    with pytest.raises(EngineError, match="grammar cannot be followed"):
        list(sft.generate(GenerateRequest(HELLO, constraint="start: NOWHERE")))
    with pytest.raises(EngineError, match="n is 0; expected at least 1 reply"):
        sft.generate(GenerateRequest(HELLO, n=0))
    refusing = LocalEngine(model, load_tokenizer(toy_base, "{{ raise_exception('no system message') }}"), "sft")
    with pytest.raises(EngineError, match="no system message"):
        refusing.generate(GenerateRequest(HELLO))
