"""Whether a step of the engine is that of a plain loop, but for rounding: by weights and by gradients."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu, plain
from benchmarks.plain import PlainLoop
from sglr_flower.run import assembly, checkpoint, inprocess
from sglr_flower.run.config import RunConfig
from sglr_flower.split.optimizers import segment_weights

Tensors = dict[str, Tensor]
"""``server/NAME`` or ``client-N/NAME`` -> a tensor."""

ROUNDING = 10.0
"""How much further from float64 an exact variant may be than a plain loop in float32; TensorFloat-32 is 2^13 times."""
_STANDING: dict[str, Any] = {"local_epochs": 4, "client_lr": 1e-30}
"""Weights stay where they are, so Adam's first moments after four steps are a sum of gradients at these weights: of a
step that is recorded the first is tried, the second recorded, and the others replayed."""


def run_weights(config: RunConfig) -> Tensors:
    """What an in-process run ends with, in its last checkpoint.

    Raises
    ------
    RuntimeError
        If its steps should be recorded and were not.
    """
    with tempfile.TemporaryDirectory(prefix="sglr-keel-") as folder:
        config = config.replace(run_dir=str(Path(folder) / "run"))
        with _refusals() as said:
            inprocess.run(config)
        if config.cohort == "graph" and said:  # it has made its steps otherwise, which says nothing of recorded ones
            raise RuntimeError(said[0])
        last = checkpoint.latest(Path(config.run_dir) / "checkpoints")
        assert last is not None
        states = {f"client-{i}": state for i, state in last.client_states(range(config.num_clients)).items()}
        return _named(
            {part: segment_weights(state) for part, state in (states | {"server": last.server_state()}).items()}
        )


@contextmanager
def _refusals() -> Iterator[list[str]]:
    """What is logged while it is entered of steps that are not recorded."""
    said: list[str] = []

    class Note(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "steps are not recorded" in record.getMessage():
                said.append(record.getMessage())

    log, note = logging.getLogger("flwr.sglr"), Note()
    before = log.level
    log.addHandler(note)
    log.setLevel(logging.INFO)
    try:
        yield said
    finally:
        log.setLevel(before)
        log.removeHandler(note)


def plain_weights(config: RunConfig, place: torch.device) -> Tensors:
    """What the plain loop ends with."""
    loop = PlainLoop(config, place)
    for server_round in range(1, config.num_server_rounds + 1):
        loop.round(server_round)
    return _named(plain.weights(loop))


def plain_gradients(config: RunConfig, place: torch.device) -> Tensors:
    """Sums of the plain loop's gradients, at the initial weights."""
    loop = PlainLoop(config.replace(**_STANDING), place, gpu.shares(config))
    loop.round(1)
    states = {part: optimizer.state_dict()["state"] for part, optimizer in loop.optimizers.items()}
    return _named({part: {str(k): own["exp_avg"] for k, own in state.items()} for part, state in states.items()})


def engine_gradients(
    form: str, config: RunConfig, place: torch.device, memory_format: torch.memory_format | None = None
) -> Tensors:
    """The same sums of the engine's gradients."""
    config = config.replace(cohort=gpu.FORMS[form], **_STANDING)
    sides = gpu.sides(config, gpu.shares(config), place, memory_format)
    sides.step_seconds(assembly.plan(config, 1))
    states = {f"client-{i}": state for i, state in sides.cohort.states().items()} | {"server": sides.server.state()}
    moments = {
        part: {name.split(".")[1]: tensor for name, tensor in state.items() if name.endswith(".exp_avg")}
        for part, state in states.items()
    }
    return _named(moments)


def largest_difference(left: Tensors, right: Tensors) -> float:
    """The largest absolute difference of any number; both must hold the same tensors."""
    _check_same(left, right)
    return max(float((left[name].double() - right[name].double()).abs().max()) for name in left)


def distance(ours: Tensors, theirs: Tensors) -> float:
    """Euclidean distance of all numbers, as a part of the norm of ``theirs``."""
    _check_same(ours, theirs)
    between = sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in theirs)
    return float((between / sum(float(tensor.double().square().sum()) for tensor in theirs.values())) ** 0.5)


def _check_same(left: Tensors, right: Tensors) -> None:
    if left.keys() != right.keys():
        raise ValueError(f"only one of the two has {sorted(left.keys() ^ right.keys())[:3]}")


def _named(parts: Mapping[str, Mapping[str, Tensor]]) -> Tensors:
    return {f"{part}/{name}": tensor.detach().cpu() for part, own in parts.items() for name, tensor in own.items()}
