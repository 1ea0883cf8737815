"""The one training loop: base, SFT and DPO hand it their batches and terms.

A step divides every term by its own count over all micro-batches and processes, so that 1 x 8, 2 x 4 and 8 x 1
conversations, on one process or several, are the same step.
"""

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from warmline.config.training import OptimSettings
from warmline.data.batches import Batch
from warmline.objectives import combine
from warmline.progress import progress, say
from warmline.run_dir import append_row, cut_back, sync
from warmline.train import trainer_state
from warmline.train.memory import give_back, halved, is_out_of_memory
from warmline.train.optim import learning_rate_factor, seed_step
from warmline.train.stage import Files, Stage, TrainError
from warmline.train.stop_signals import stop_signals
from warmline.train.tracking import Track, untracked
from warmline.train.trainer_state import State

if TYPE_CHECKING:
    from accelerate import Accelerator

MAX_SKIPS = 10  # fp16 steps in a row that may overflow


class Stopped(Exception):  # noqa: N818
    """The run was asked to stop, saved itself, and can be resumed."""


@dataclass(frozen=True)
class _Session:
    stage: Stage
    model: nn.Module  # as `accelerator` wrapped it
    optimizer: torch.optim.Optimizer
    base_rates: Sequence[float]  # of the optimizer's groups, before warm-up and decay
    scaler: Any
    accelerator: "Accelerator"
    optim: OptimSettings


def train(
    stage: Stage, optim: OptimSettings, accelerator: "Accelerator", files: Files, track: Track = untracked
) -> trainer_state.Best:
    """Run `stage` to its last step, resuming where `files` left off; returns the step with the best validation loss,
    whose weights the model then has.

    Raises TrainError on a loss that is not finite (before the update) and Stopped after SIGTERM or SIGINT.
    """
    optimizer = torch.optim.AdamW(list(stage.parameters), weight_decay=optim.weight_decay)
    scaler = torch.amp.GradScaler(accelerator.device.type, enabled=stage.dtype == "float16")
    base_rates = [group["lr"] for group in optimizer.param_groups]
    saved = trainer_state.Saved(stage.model, optimizer, scaler)
    state = trainer_state.resume(files.trainer, saved)
    if accelerator.is_main_process:
        for file in (files.metrics, files.timing):
            cut_back(file, lambda row: row["stage"] != stage.name or row["step"] <= state.step)
    stage.model.train()
    model = accelerator.prepare_model(stage.model) if accelerator.num_processes > 1 else stage.model
    session = _Session(stage, model, optimizer, base_rates, scaler, accelerator, optim)
    with stop_signals() as stop_asked, _progress(stage, accelerator, state.step) as advance:
        while state.step < stage.num_steps:
            started = time.monotonic()
            row, state = _step_that_fits(session, state)
            rows = [row]
            if state.step == stage.num_steps or state.step % stage.validate_every == 0:
                rows.append(_validate(session, state.step))
                state = state.with_validation(rows[-1]["loss"])
            stopping = _any(accelerator, stop_asked())
            if accelerator.is_main_process:
                for each in rows:
                    append_row(files.metrics, each)
                    track(each)
                seconds = round(time.monotonic() - started, 3)
                append_row(files.timing, {"stage": stage.name, "step": state.step, "seconds": seconds})
                if stopping or state.is_best or state.step == stage.num_steps or state.step % stage.save_every == 0:
                    sync(files.metrics)  # a state is never newer than its rows, not even after a power cut
                    trainer_state.save(files.trainer, saved, state)
            advance(1, "" if row["loss"] is None else f"loss {row['loss']:.3f}")
            if stopping and state.step < stage.num_steps:
                raise Stopped(
                    f"stopped after step {state.step} of {stage.num_steps}; the same command goes on from there"
                )
            if state.skips_in_row >= MAX_SKIPS:
                raise TrainError(f"{MAX_SKIPS} fp16 steps in a row overflowed; use bfloat16 or a lower learning rate")
    accelerator.wait_for_everyone()
    trainer_state.load_weights(files.trainer, state.best.step, stage.model)
    stage.model.eval()
    return state.best


def _step_that_fits(session: _Session, state: State) -> tuple[dict[str, Any], State]:
    """One optimizer step; where memory runs out, the same step again in micro-batches of half the size."""
    budget = state.micro_batch_tokens or session.optim.micro_batch_tokens
    while True:
        batches = session.stage.batches(state.step, budget)
        try:
            row = _step(session, state.step, batches)
            return row, replace(state.after_step(skipped=row["grad_norm"] is None), micro_batch_tokens=budget)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        budget = halved(batches, state.step, session.accelerator.num_processes)
        session.optimizer.zero_grad(set_to_none=True)
        give_back()
        say(f"out of memory in step {state.step + 1}: going on with micro-batches of {budget} tokens")


def _step(session: _Session, step: int, batches: Sequence[Batch]) -> dict[str, Any]:
    """One optimizer step (from 0) and its row of metrics; the gradient's norm is None if fp16 overflowed."""
    stage, optimizer, scaler = session.stage, session.optimizer, session.scaler
    factor = learning_rate_factor(step, stage.num_steps, session.optim.warmup_ratio)
    for group, rate in zip(optimizer.param_groups, session.base_rates, strict=True):
        group["lr"] = rate * factor
    seed_step(stage.seed, step, session.accelerator.process_index)
    optimizer.zero_grad(set_to_none=True)
    result = _forward_backward(session, batches)
    scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(parameters, session.optim.max_grad_norm))
    if not math.isfinite(norm) and not scaler.is_enabled():
        raise TrainError(f"stage {stage.name}, step {step + 1}: the gradient is not finite; the update was not made")
    scaler.step(optimizer)
    scaler.update()
    shown_norm = norm if math.isfinite(norm) else None
    return _row(stage, step + 1, "train", result, session.base_rates[0] * factor, shown_norm)


@dataclass(frozen=True)
class Result:
    totals: dict[str, float]
    counts: dict[str, int]
    num_tokens: int


def _forward_backward(session: _Session, batches: Sequence[Batch]) -> Result:
    """Accumulate the gradient of the whole step; refuse a term that is not finite before any update."""
    stage, accelerator = session.stage, session.accelerator
    names = _active(stage)
    counts = _sum_over_processes(accelerator, [[batch.counts[name] for name in names] for batch in batches])
    of_step = {name: int(count) for name, count in zip(names, counts, strict=True)}
    totals = []
    for at, batch in enumerate(batches):
        last = at == len(batches) - 1
        with nullcontext() if last or accelerator.num_processes == 1 else accelerator.no_sync(session.model):
            terms = stage.terms(session.model, batch.to(accelerator.device))
            loss = combine({name: terms[name].total for name in names}, stage.weights, of_step)
            # data-parallel training averages gradients over processes; the counts are already those of all of them
            session.scaler.scale(loss * accelerator.num_processes).backward()
        totals.append(torch.stack([terms[name].total.detach().double() for name in names]))
    of_batches = torch.stack(totals).tolist()
    _refuse_non_finite(session, of_batches, batches)
    summed = _sum_over_processes(accelerator, of_batches)
    tokens = _sum_over_processes(accelerator, [[batch.num_tokens] for batch in batches])
    return Result(dict(zip(names, summed, strict=True)), of_step, int(tokens[0]))


def _refuse_non_finite(session: _Session, totals: Sequence[Sequence[float]], batches: Sequence[Batch]) -> None:
    """Raises TrainError, on every process, if a term of this step is not finite."""
    bad = [
        (row, at) for row, values in enumerate(totals) for at, value in enumerate(values) if not math.isfinite(value)
    ]
    if not _any(session.accelerator, bool(bad)):
        return
    if not bad:
        raise TrainError("another process met a loss that is not finite; the update was not made")
    row, at = bad[0]
    name = _active(session.stage)[at]
    raise TrainError(
        f"stage {session.stage.name}: the term {name!r} is {totals[row][at]} "
        f"in the conversations {', '.join(_offenders(session.stage, name, batches[row]))}; the update was not made"
    )


@torch.no_grad()
def _offenders(stage: Stage, name: str, batch: Batch) -> list[str]:
    """The conversations that make the term non-finite alone; all of the batch if none does."""
    device = next(stage.model.parameters()).device
    alone = {example.id: stage.collate([example]).to(device) for example in batch.examples}
    found = [each for each, one in alone.items() if not torch.isfinite(stage.terms(stage.model, one)[name].total)]
    return found or list(alone)


@torch.no_grad()
def _validate(session: _Session, step: int) -> dict[str, Any]:
    """The row of metrics of one pass over the validation batches, dropout off."""
    stage, accelerator = session.stage, session.accelerator
    names = _active(stage)
    stage.model.eval()
    totals, counts = [[0.0] * len(names)], [[0] * len(names)]
    for batch in stage.validation:
        terms = stage.terms(stage.model, batch.to(accelerator.device))
        totals.append([float(terms[name].total) for name in names])
        counts.append([batch.counts[name] for name in names])
    stage.model.train()
    summed = dict(zip(names, _sum_over_processes(accelerator, totals), strict=True))
    by_name = {name: int(count) for name, count in zip(names, _sum_over_processes(accelerator, counts), strict=True)}
    return _row(stage, step, "validation", Result(summed, by_name, 0), None, None)


def _active(stage: Stage) -> list[str]:
    """The terms with a weight."""
    return [name for name, weight in stage.weights.items() if weight > 0]


def _row(stage: Stage, step: int, split: str, result: Result, rate: float | None, norm: float | None) -> dict[str, Any]:
    """One line of metrics.jsonl; a term without labels in this step has the value None."""
    terms = {
        name: {"value": total / count if (count := result.counts[name]) else None, "count": count}
        for name, total in result.totals.items()
    }
    values = [stage.weights[name] * term["value"] for name, term in terms.items() if term["value"] is not None]
    return {
        "step": step,
        "stage": stage.name,
        "split": split,
        "loss": sum(values) if values else None,
        "terms": terms,
        "lr": rate,
        "grad_norm": norm,
        "tokens": result.num_tokens,
    }


def _sum_over_processes(accelerator: "Accelerator", rows: Sequence[Sequence[float]]) -> list[float]:
    """Column sums over this process's rows and over all processes, in float64."""
    summed = torch.tensor(rows, dtype=torch.float64, device=accelerator.device).sum(dim=0)
    if accelerator.num_processes > 1:
        summed = accelerator.reduce(summed, reduction="sum")
    return summed.tolist()  # type: ignore[union-attr]


def _any(accelerator: "Accelerator", here: bool) -> bool:
    return (accelerator.num_processes == 1 and here) or _sum_over_processes(accelerator, [[float(here)]])[0] > 0


def _progress(stage: Stage, accelerator: "Accelerator", done: int) -> Any:
    if accelerator.is_main_process:
        return progress(f"train {stage.name}", stage.num_steps, done)
    return nullcontext(lambda _count, _note="": None)
