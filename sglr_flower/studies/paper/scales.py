"""How much of the paper's setting is run: all, its data for a few rounds, less of both, or a test that all works."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sglr_flower.run.config import Scalar


@dataclass(frozen=True)
class Scale:
    """Run-config values that all cells of an experiment have in common.

    Attributes
    ----------
    name : str
        As it is given to ``--scale``.
    values : Mapping[str, Scalar]
        Run-config keys, kebab-case; keys left out have their defaults.
    curves : Mapping[str, Scalar]
        Changes to ``values`` where accuracy is drawn per round.
    cells_of : str
        Name of the scale whose cells an experiment has that has none of its own at this one.
    """

    name: str
    values: Mapping[str, Scalar]
    curves: Mapping[str, Scalar] = field(default_factory=dict)
    cells_of: str = ""

    def settings(self, curves: bool) -> dict[str, Scalar]:
        """The values of an experiment that draws curves, or of one that does not."""
        return {**self.values, **(self.curves if curves else {})}


# The paper's setting; where it leaves a choice, the authors' code (see PAPER.md and configs/fashion_mnist.toml).
_FULL: dict[str, Scalar] = {
    "dataset": "fashion-mnist",
    "partition": "balanced",
    "samples-per-client": 1000,
    "batch-size": 8,
    "num-server-rounds": 250,
    "local-epochs": 1,
    "optimizer": "adam",
    "client-lr": 1e-3,
    "lr-schedule": "step",
    "evaluate-every": 10,
    "evaluate-samples": 2500,
    "checkpoint-every": 5,
}

SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            "smoke",
            {
                **_FULL,
                "dataset": "digits",
                "samples-per-client": 24,
                "num-server-rounds": 2,
                "evaluate-every": 0,
                "evaluate-samples": 50,
                "checkpoint-every": 1,
            },
            curves={"evaluate-every": 1},
        ),
        Scale(
            "small",
            {
                **_FULL,
                "samples-per-client": 300,
                "num-server-rounds": 15,
                "evaluate-every": 0,
                "evaluate-samples": 1000,
            },
            curves={"evaluate-every": 1, "evaluate-samples": 500},
        ),
        Scale(
            "tiny",
            {
                **_FULL,
                "samples-per-client": 150,
                "num-server-rounds": 10,
                "evaluate-every": 0,
                "evaluate-samples": 500,
            },
            curves={"evaluate-every": 1},
            cells_of="small",
        ),
        # All of the data, a sixteenth of the rounds. As at full, accuracy is of each client's best validation round,
        # but of five that are evaluated: scoring all clients on 2,500 images takes longer than training a round.
        Scale(
            "short",
            {**_FULL, "num-server-rounds": 15, "evaluate-every": 3},
            curves={"evaluate-every": 1, "evaluate-samples": 500},
            cells_of="small",
        ),
        Scale("full", _FULL),
    )
}
