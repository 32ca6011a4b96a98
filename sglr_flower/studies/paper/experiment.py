"""An experiment: a value that says which cells it has, how its table is laid out, and what is drawn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sglr_flower.run.config import RunConfig, Scalar
from sglr_flower.studies.paper.cells import Cell, Label
from sglr_flower.studies.paper.measures import ACCURACY, Measure
from sglr_flower.studies.paper.scales import Scale

Grid = Mapping[str, Sequence[Label]]
Picture = Literal["lines", "heat map", "points", "curves", "trade-off", "reconstructions", "feature maps"]
OF_RUNS: tuple[Picture, ...] = ("reconstructions", "feature maps")
"""Pictures that are made of run directories, and of one seed."""


@dataclass(frozen=True)
class Experiment:
    """A table or a figure of the paper.

    Attributes
    ----------
    name, title : str
        As it is given to ``sglr paper``, and as it is headed.
    rows, columns : str, tuple[str, ...]
        The label that tells the rows of its table apart, and those that tell its columns apart (none: one column).
    grids : Mapping[str, Grid]
        Scale -> label -> its values; the cells are all combinations.
    settings : Callable[[Mapping[str, Label]], dict[str, Scalar]]
        The run-config values that follow from a combination, ``method`` among them.
    paper : Callable[[Mapping[str, Label]], float | None]
        What the paper reports for a cell's labels, in the unit of ``measure``.
    picture : Picture
        What is drawn.
    note : str
        What of the setting is our choice.
    compute : bool
        Whether the client's computation stands beside the accuracy (Table 4).
    baseline : str
        The row that the others are compared with, seed by seed; empty: none.
    plain : Mapping[str, Label]
        The labels of the cell without what the experiment is about, to whose accuracy others are timed; empty: none.
    measure : Measure
        What the table reports, beside the paper's.
    beside : tuple[Measure, ...]
        What stands beside it without the paper's; for tables of one column.
    attack : bool
        Whether each run is attacked when it is trained.
    also : tuple[Picture, ...]
        Further pictures.
    """

    name: str
    title: str
    rows: str
    columns: tuple[str, ...]
    grids: Mapping[str, Grid]
    settings: Callable[[Mapping[str, Label]], dict[str, Scalar]]
    paper: Callable[[Mapping[str, Label]], float | None]
    picture: Picture
    note: str = ""
    compute: bool = False
    baseline: str = ""
    plain: Mapping[str, Label] = field(default_factory=dict)
    measure: Measure = ACCURACY
    beside: tuple[Measure, ...] = ()
    attack: bool = False
    also: tuple[Picture, ...] = ()

    @property
    def measures(self) -> tuple[Measure, ...]:
        """All that its table has."""
        return (self.measure, *self.beside)

    @property
    def shows_runs(self) -> bool:
        """Whether something of it is made from run directories, which no row of figures can take the place of."""
        return self.attack or not set(OF_RUNS).isdisjoint(self.pictures.values())

    @property
    def pictures(self) -> dict[str, Picture]:
        """File name -> what is drawn in it."""
        return {"picture.png": self.picture} | {f"{kind.replace(' ', '_')}.png": kind for kind in self.also}

    def base(self, scale: Scale) -> dict[str, Scalar]:
        """The run-config values that all of its cells have in common."""
        return scale.settings(curves=self.picture == "curves")

    def cells(self, scale: Scale, seeds: Iterable[int]) -> list[Cell]:
        """All cells, the first seed's first: a sweep that is stopped early has a whole table of fewer seeds."""
        grid = self.grids[scale.name if scale.name in self.grids else scale.cells_of]
        combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        return [self._cell(scale, labels, seed) for seed in seeds for labels in combinations]

    def _cell(self, scale: Scale, labels: Mapping[str, Label], seed: int) -> Cell:
        settings = self.settings(labels)
        values = {**self.base(scale), "num-clients": int(labels["clients"]), **settings, "seed": seed}
        labelled = {"method": str(settings["method"]), **labels, "seed": seed}
        return Cell(labelled, RunConfig.parse(values), self.attack)
