"""A training loop that can stop at any moment and goes on at the very step."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from export.training.muon import Muon
from runtime.cli import console
from runtime.files import atomic_file

SAVE_EVERY_SECONDS = 120.0


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a cosine to zero: shapes are learnt while the rate falls."""

    steps: int
    warmup: int
    matrix_rate: float
    other_rate: float

    def factor(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def optimizers(parameters: Iterable[tuple[str, nn.Parameter]], schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for embeddings, convolutions, norms and biases."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in parameters:
        inside = ("blocks." in name or "layers." in name) and parameter.ndim == 2
        (matrices if inside else others).append(parameter)
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=schedule.other_rate, betas=(0.9, 0.98), weight_decay=0.01)
    ]
    if matrices:
        found.append(Muon(matrices, lr=schedule.matrix_rate, weight_decay=0.02))
    return found


def train(
    name: str,
    model: nn.Module,
    schedule: Schedule,
    loss: Callable[[int], tuple[Tensor, dict[str, float]]],
    evaluate: Callable[[], dict[str, float]],
    work: Path,
    evaluate_every: int,
) -> None:
    """Trains the parameters of `model` that require gradients; `loss(step)` must depend on the step alone.

    Progress is kept in `<work>/<name>.pt` and the curve in `<work>/<name>.jsonl`.
    """
    trained = [(key, value) for key, value in model.named_parameters() if value.requires_grad]
    steppers = optimizers(trained, schedule)
    rates = [[group["lr"] for group in stepper.param_groups] for stepper in steppers]
    file, curve = work / f"{name}.pt", work / f"{name}.jsonl"
    first = restore(file, model, steppers)
    saved = time.monotonic()
    mean: dict[str, float] = {}
    for step in track(
        range(first, schedule.steps),
        name,
        schedule.steps,
        completed=first,
        console=console,
        disable=not console.is_terminal,
    ):
        for stepper, base in zip(steppers, rates, strict=True):
            for group, rate in zip(stepper.param_groups, base, strict=True):
                group["lr"] = rate * schedule.factor(step)
            stepper.zero_grad(set_to_none=True)
        total, parts = loss(step)
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_([value for _, value in trained], 1.0)
        for stepper in steppers:
            stepper.step()
        mean = {key: 0.98 * mean.get(key, value) + 0.02 * value for key, value in parts.items()}
        if (step + 1) % evaluate_every == 0 or step + 1 == schedule.steps:
            model.eval()
            row = {"step": step + 1, **mean, **evaluate()}
            model.train()
            with curve.open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(json.dumps({key: round(value, 4) for key, value in row.items()}), flush=True)
        if time.monotonic() - saved > SAVE_EVERY_SECONDS or step + 1 == schedule.steps:
            save(file, model, steppers, step + 1)
            saved = time.monotonic()


def save(file: Path, model: nn.Module, steppers: list[torch.optim.Optimizer], step: int) -> None:
    content: dict[str, Any] = {
        "step": step,
        "model": model.state_dict(),
        "optimizers": [stepper.state_dict() for stepper in steppers],
    }
    with atomic_file(file) as unfinished:
        torch.save(content, unfinished)


def restore(file: Path, model: nn.Module, steppers: list[torch.optim.Optimizer]) -> int:
    """Returns the step to go on with: 0 where there is nothing to restore."""
    if not file.exists():
        return 0
    content = torch.load(file, weights_only=True, map_location="cpu")
    model.load_state_dict(content["model"])
    for stepper, state in zip(steppers, content["optimizers"], strict=True):
        stepper.load_state_dict(state)
    return int(content["step"])
