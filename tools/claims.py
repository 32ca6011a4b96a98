"""The paper's claims as sums of accuracies, and whether a ledger's runs show them: by one rule, for all alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sglr_flower.studies.paper import ledger
from sglr_flower.studies.paper.cells import select
from sglr_flower.studies.paper.experiments import EXPERIMENTS
from sglr_flower.studies.paper.layout import Grid
from sglr_flower.studies.paper.ledger import Row
from sglr_flower.studies.paper.measures import ACCURACY
from sglr_flower.studies.paper.results import Estimate, estimate
from sglr_flower.studies.paper.scales import Scale

RULE = (
    "Differences are of accuracies in percentage points, seed by seed, with the 95 % interval (Student's t) of their "
    "mean. **Holds**: the interval lies above zero. **In direction**: the mean does, the interval does not, or there "
    "is one seed and so no interval. **Not seen**: the mean lies at or below zero, and the interval does not lie below "
    "it. **Contradicted**: the interval lies below zero. (Above or below 10 points where the claim is of a failure.) "
    "Each interval is of its own claim: of twenty such, one would exclude zero by chance."
)
FAILURE = 10.0
"""By how many percentage points training must be worse to have failed."""


@dataclass(frozen=True)
class Term:
    """Cells that differ in their seed alone, and how often their accuracy counts.

    Attributes
    ----------
    times : int
        1 or -1.
    experiment, only : str
        As they are given to ``sglr paper``.
    """

    times: int
    experiment: str
    only: str


@dataclass(frozen=True)
class Claim:
    """That a sum of accuracies is above some number of percentage points, in words and in cells."""

    words: str
    terms: tuple[Term, ...]
    above: float = 0.0


def _over(better: str, worse: str, clients: int, experiment: str = "methods") -> tuple[Term, Term]:
    return (
        Term(1, experiment, f"method={better},clients={clients}"),
        Term(-1, experiment, f"method={worse},clients={clients}"),
    )


CLAIMS = (
    Claim("SplitAvg helps: sgl over psl, 20 clients", _over("sgl", "psl", 20)),
    Claim("the same, 10 clients", _over("sgl", "psl", 10)),
    Claim("SplitLr helps: slr over psl, 20 clients", _over("slr", "psl", 20)),
    Claim("the same, 10 clients", _over("slr", "psl", 10)),
    Claim("both help: sglr over psl, 20 clients", _over("sglr", "psl", 20)),
    Claim("the same, 10 clients", _over("sglr", "psl", 10)),
    Claim("the two add up: sglr over sgl, 20 clients", _over("sglr", "sgl", 20)),
    Claim("the two add up: sglr over slr, 20 clients", _over("sglr", "slr", 20)),
    Claim(
        "gains grow with the number of clients: sglr over psl, by how much more with 20 than with 10",
        (*_over("sglr", "psl", 20), *(Term(-one.times, one.experiment, one.only) for one in _over("sglr", "psl", 10))),
    ),
    Claim(
        f"alpha 2 diverges with 10 clients: psl over it, by more than {FAILURE:g}",
        (Term(1, "methods", "method=psl,clients=10"), Term(-1, "table1", "clients=10,alpha=2")),
        FAILURE,
    ),
    Claim(
        "averaging all clients all the way (phi 1) fails with 20, alpha 1: none averaged over it, by more than "
        f"{FAILURE:g}",
        (Term(1, "table3", "clients=20,phase=none"), Term(-1, "table3", "clients=20,phase=always")),
        FAILURE,
    ),
    Claim(
        "sglr is better than sfl, 20 clients (in the paper with AlexNet and 5)",
        _over("sglr", "sfl", 20),
    ),
    Claim(
        "(not the paper's) sglr over psl where all client segments start from the same weights, 20 clients",
        _over("sglr", "psl", 20, "initial"),
    ),
)


def table(rows: Sequence[Row], scale: Scale) -> Grid:
    """Every claim with the paper's difference, ours, and the verdict."""
    lines = []
    for claim in CLAIMS:
        ours, paper = difference(claim, rows, scale), published(claim, scale)
        shown = "-" if ours is None else _shown(ours)
        lines.append([claim.words, "-" if paper is None else f"{paper:+.2f}", shown, verdict(claim, ours)])
    return Grid(["claim", "the paper (points)", "here", "verdict"], lines)


def difference(claim: Claim, rows: Sequence[Row], scale: Scale) -> Estimate | None:
    """The claim's sum over the seeds of which all of its cells are there, in percentage points; None: there is none."""
    seeds = sorted(ledger.seeds(rows))
    by_term = []
    for term in claim.terms:
        cells = select(EXPERIMENTS[term.experiment].cells(scale, seeds), term.only) if seeds else []
        found = ledger.results(rows, cells)
        by_term.append({one.cell.config.seed: term.times * ACCURACY.value(one.figures) for one in found})
    common = [seed for seed in seeds if all(seed in values for values in by_term)]
    return estimate([sum(values[seed] for values in by_term) for seed in common]) if common else None


def published(claim: Claim, scale: Scale) -> float | None:
    """The same of the paper's numbers; None if it does not report all of them."""
    total = 0.0
    for term in claim.terms:
        experiment = EXPERIMENTS[term.experiment]
        (cell,) = select(experiment.cells(scale, [0]), term.only)
        value = experiment.paper(cell.labels)
        if value is None:
            return None
        total += term.times * value
    return total


def verdict(claim: Claim, ours: Estimate | None) -> str:
    """What `RULE` says."""
    if ours is None:
        return "not run"
    above, width = ours.mean - claim.above, ours.half_width
    if above > 0:
        return "holds" if width is not None and above > width else "in direction"
    return "contradicted" if width is not None and -above > width else "not seen"


def _shown(ours: Estimate) -> str:
    if ours.half_width is None:
        return f"{ours.mean:+.2f} (one seed)"
    return f"{ours.mean:+.2f} ± {ours.half_width:.2f} ({ours.seeds} seeds)"
