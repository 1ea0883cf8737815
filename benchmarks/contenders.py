"""The contenders: warmline's own path, one example per turn, and the trainers of transformers and TRL.

Each trains the same adapter (LoRA of rank 16 on all linear layers) on the same frozen base, with AdamW, one optimizer
step per eight conversations, and everything else as its authors have it.
"""

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.workload import BATCH_SIZE, LEARNING_RATE, Workload
from warmline.config.fields import Dtype
from warmline.data.batches import Batch
from warmline.data.labels import EMOTIONS, IGNORE, STRATEGIES, HeadSpec
from warmline.data.tokenize import Example, Ints
from warmline.model.support_model import SupportModel
from warmline.train.loop import train
from warmline.train.sft import sft_stage
from warmline.train.stage import Files

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

Mark = Callable[[], None]  # to be called after the warm-up and after every step


class Prepared(NamedTuple):
    """A contender that is built and has not trained."""

    labels: list[list[Ints]]  # by step, the warm-up first: what it supervises, as it holds it itself
    loss: Callable[[], float]  # its formula on the first timed conversation, in nats per supervised token
    train: Callable[[Mark], None]


class Contender(NamedTuple):
    prepare: Callable[[Workload, "PreTrainedModel", Dtype], Prepared]
    about: str
    one_step: bool = False  # trains the first step only, and is compared over it
    package: str | None = None  # that it needs beside warmline's own


def warmline(work: Workload, base: "PreTrainedModel", dtype: Dtype) -> Prepared:
    """The real path: one-pass examples, `sft_stage` with two heads on, and the loop itself."""
    from accelerate import Accelerator

    model = SupportModel(base, dtype)
    specs = {"emotion": HeadSpec("softmax", EMOTIONS), "strategy": HeadSpec("softmax", STRATEGIES)}
    model.add_stage("sft", work.recipe.model.lora, specs, "random")
    stir(model)
    accelerator = Accelerator(cpu=True)
    recipe = work.recipe.model_copy(update={"model": work.recipe.model.model_copy(update={"dtype": dtype})})
    rows = {work.source: [work.example(conversation) for conversation in work.conversations]}
    stage = sft_stage(recipe, model, rows, {}, accelerator, work.pad_id)
    warm_up = [stage.collate([work.example(conversation)]) for conversation in work.warm_up()]
    labels = [[example.labels for batch in warm_up for example in batch.examples]]
    labels += [
        [
            example.labels
            for batch in stage.batches(step, recipe.sft.optim.micro_batch_tokens)
            for example in batch.examples
        ]
        for step in range(work.num_steps)
    ]

    def loss() -> float:
        with torch.no_grad():
            term = stage.terms(model, stage.collate([work.example(work.step(0)[0])]))["lm"]
        return float(term.total / term.count)

    def run(mark: Mark) -> None:
        def batches(step: int, budget: int) -> Sequence[Batch]:
            """The loop asks for a step's batches first thing, so the step before is over. The last step is no part of
            the measurement: after it the loop saves."""
            if step:
                mark()
            return stage.batches(step - 1, budget) if 0 < step <= work.num_steps else warm_up

        folder = scratch()
        files = Files(folder / "trainer", folder / "metrics.jsonl", folder / "timing.jsonl")
        train(replace(stage, batches=batches, num_steps=work.num_steps + 2), recipe.sft.optim, accelerator, files)

    return Prepared(labels, loss, run)


def per_turn(work: Workload, base: "PreTrainedModel", dtype: Dtype, *, batch_size: int) -> Prepared:
    """One example for every supporter turn, its history encoded again; the model's own loss over full logits.

    A plain loop without a trainer's overhead, over the shuffled turns of a step's conversations.
    """
    from transformers import DataCollatorForSeq2Seq

    model = adapted(base)
    encoder = work.encoder()
    collate = DataCollatorForSeq2Seq(work.tokenizer)
    steps = [
        [example for conversation in step for example in encoder.per_turn(conversation)] for step in work.all_steps()
    ]
    for number, examples in enumerate(steps):
        random.Random(number).shuffle(examples)

    def batches(examples: Sequence[Example]) -> list[dict[str, Tensor]]:
        groups = [examples[at : at + batch_size] for at in range(0, len(examples), batch_size)]
        return [collate([row_of(example) for example in group]) for group in groups]

    def summed_loss(batch: dict[str, Tensor], num_tokens: int) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            return model(**batch, num_items_in_batch=num_tokens, use_cache=False).loss

    def loss() -> float:
        examples = encoder.per_turn(work.step(0)[0])
        num_tokens = num_supervised(examples)
        with torch.no_grad():
            return float(sum(summed_loss(batch, num_tokens) for batch in batches(examples)))

    def run(mark: Mark) -> None:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
        model.train()
        for examples in steps:
            num_tokens = num_supervised(examples)
            for batch in batches(examples):
                summed_loss(batch, num_tokens).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            mark()

    return Prepared([[example.labels for example in examples] for examples in steps], loss, run)


def hf_trainer(work: Workload, base: "PreTrainedModel", dtype: Dtype, *, tuned: bool) -> Prepared:
    """transformers' Trainer on whole conversations, labels prepared by us."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    rows = [row_of(work.example(conversation)) for step in work.all_steps() for conversation in step]
    trainer = Trainer(
        model=adapted(base),
        args=TrainingArguments(**arguments(dtype, tuned=tuned)),
        data_collator=DataCollatorForSeq2Seq(work.tokenizer),
        train_dataset=rows,  # type: ignore[arg-type]
    )
    return of_trainer(trainer)


# The template of our tokenizer, with TRL's markers around what is trained. The first message is a user's, or an opening
# of the supporter, which teaches nothing.
MARKED_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and not loop.first %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def trl_trainer(work: Workload, base: "PreTrainedModel", dtype: Dtype, *, tuned: bool) -> Prepared:
    """TRL's SFTTrainer on whole conversations, which it renders, tokenises and masks itself."""
    from datasets import Dataset

    trl: Any = import_module("trl")  # of the extra [parity], which the type checker may not have
    encoder = work.encoder()
    talks = [encoder.messages(conversation.turns) for step in work.all_steps() for conversation in step]
    tokenizer = copy.deepcopy(work.tokenizer)
    tokenizer.chat_template = MARKED_CHATML
    options: dict[str, Any] = {**arguments(dtype, tuned=tuned), "assistant_only_loss": True}
    if tuned:
        options["gradient_checkpointing"] = False  # TRL's default saves memory that batches of one do not need
    trainer = trl.SFTTrainer(
        model=adapted(base),
        args=trl.SFTConfig(**options),
        train_dataset=Dataset.from_list([{"messages": messages} for messages in talks]),
        processing_class=tokenizer,
    )
    return of_trainer(trainer)


def of_trainer(trainer: "Trainer") -> Prepared:
    """A trainer of transformers, or one made from it, whose rows stand in their order."""
    from transformers import TrainerCallback

    rows: Any = trainer.train_dataset
    labels = [np.asarray(rows[at]["labels"]) for at in range(len(rows))]

    def loss() -> float:
        batch: Any = trainer.data_collator([rows[BATCH_SIZE]])
        num_tokens = (batch["labels"] != IGNORE).sum()
        trainer.model.eval()  # type: ignore[union-attr]
        with torch.no_grad():
            return float(trainer.compute_loss(trainer.model, batch, num_items_in_batch=num_tokens))  # type: ignore[arg-type]

    def run(mark: Mark) -> None:
        class Marks(TrainerCallback):
            def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
                mark()

        trainer.add_callback(Marks())
        trainer.train()

    return Prepared([labels[at : at + BATCH_SIZE] for at in range(0, len(labels), BATCH_SIZE)], loss, run)


def arguments(dtype: Dtype, *, tuned: bool) -> dict[str, Any]:
    """What a trainer is told: where to leave things, in which order to read, and how many rows a pass has."""
    return {
        "output_dir": str(scratch()),
        "use_cpu": True,
        "bf16": dtype == "bfloat16",
        "learning_rate": LEARNING_RATE,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 1 if tuned else BATCH_SIZE,
        "gradient_accumulation_steps": BATCH_SIZE if tuned else 1,
        "train_sampling_strategy": "sequential",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def adapted(base: "PreTrainedModel") -> Any:
    """The base with a fresh adapter, as users of peft make it."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    stir(model)
    return model


def stir(model: nn.Module) -> None:
    """The same adapter weights for every contender, none of them zero: a zero adapter would hide a wrong gradient."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.empty_like(parameter).normal_(0, 0.02, generator=generator))


def row_of(example: Example) -> dict[str, list[int]]:
    """A row as transformers' collators take it."""
    return {
        "input_ids": example.input_ids.tolist(),
        "attention_mask": [1] * len(example),
        "labels": example.labels.tolist(),
    }


def num_supervised(examples: Sequence[Example]) -> int:
    return sum(int((example.labels != IGNORE).sum()) for example in examples)


def scratch() -> Path:
    """A folder of this process; the benchmark's own folder holds it and is deleted at the end."""
    return Path(mkdtemp())


CONTENDERS = {
    "warmline": Contender(warmline, "one pass, gathered and chunked logits, emotion and strategy heads on"),
    "trainer, tuned": Contender(
        partial(hf_trainer, tuned=True), "transformers Trainer, whole conversations, batch 1 x 8 accumulated"
    ),
    "trainer": Contender(
        partial(hf_trainer, tuned=False), "transformers Trainer, whole conversations, defaults: padded batch of 8"
    ),
    "trl, tuned": Contender(
        partial(trl_trainer, tuned=True),
        "TRL SFTTrainer, assistant-only, batch 1 x 8 accumulated, no checkpointing",
        package="trl",
    ),
    "trl": Contender(
        partial(trl_trainer, tuned=False),
        "TRL SFTTrainer, assistant-only, defaults: padded batch of 8, checkpointing",
        package="trl",
    ),
    "per turn, batch 1": Contender(
        partial(per_turn, batch_size=1), "one example per turn, one at a time", one_step=True
    ),
    "per turn, padded 4": Contender(
        partial(per_turn, batch_size=4), "one example per turn, shuffled, padded batches of 4", one_step=True
    ),
}
