"""What a run with differential privacy has spent: a ledger of its releases, and epsilon by Google's dp-accounting.

The ledger is written before a round's first message, and never taken back: a round that is trained again, or was lost
when the run was killed, has been seen by the clients.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from sglr_flower.errors import UserError
from sglr_flower.files import write_atomic
from sglr_flower.run.config import RunConfig
from sglr_flower.split.noise import FRESH
from sglr_flower.split.plan import RoundPlan

LEDGER = "privacy.json"


def check() -> None:
    """Find out whether the accountant is installed.

    Raises
    ------
    UserError
        If not.
    """
    if find_spec("dp_accounting") is None:
        raise UserError("run-config key dp-noise: it needs the accountant: pip install 'dp-accounting>=0.6,<0.7'")


def epsilon(noise: float, releases: int, delta: float) -> float:
    """Epsilon of the adaptive composition of Gaussian mechanisms with one noise multiplier.

    It is that of a single one with the multiplier ``noise / sqrt(releases)`` (Dong, Roth & Su, "Gaussian differential
    privacy", arXiv 1905.02383, corollary 3.3), and exact (Balle & Wang, arXiv 1805.06530).

    Parameters
    ----------
    noise : float
        The noise multiplier, above 0.
    releases : int
        How many; 0 is perfectly private.
    delta : float
        In (0, 1).
    """
    from dp_accounting import get_epsilon_gaussian  # optional, and it imports SciPy

    return float(get_epsilon_gaussian(noise / math.sqrt(releases), delta)) if releases else 0.0


@dataclass
class Ledger:
    """How many releases each client has been in, or with ``messages`` received.

    Attributes
    ----------
    path : Path
        ``privacy.json`` of the run directory.
    noise, delta, budget : float
        Of the run-config; without a budget 0.
    claims : bool
        Whether the noise is one that nobody can draw again, so that there is an epsilon.
    releases : dict[int, int]
        Client -> its count; without those that have none.
    """

    path: Path
    noise: float
    delta: float
    budget: float
    claims: bool
    releases: dict[int, int] = field(default_factory=dict)

    @classmethod
    def open(cls, config: RunConfig, run_dir: Path, rounds: int) -> Ledger | None:
        """The ledger of a run that has recorded so many ``rounds``; None without differential privacy.

        Raises
        ------
        UserError
            If the run has spent something and the ledger does not say what.
        """
        if not config.dp_noise:
            return None
        check()
        path = run_dir / LEDGER
        claims = config.noise_seed == FRESH
        ledger = cls(path, config.dp_noise, config.dp_delta, config.dp_epsilon_budget, claims)
        if rounds or path.exists():
            ledger.releases = _read(path)
        return ledger

    @property
    def epsilon(self) -> float | None:
        """Spent so far, of the client that has spent most; None where nothing can be claimed."""
        return epsilon(self.noise, max(self.releases.values(), default=0), self.delta) if self.claims else None

    def affords(self, plan: RoundPlan, samples: Mapping[int, int]) -> bool:
        """Whether the budget allows a round; ``samples``: client -> number of its training samples."""
        return not self.budget or self.cost(plan, samples) <= self.budget

    def cost(self, plan: RoundPlan, samples: Mapping[int, int]) -> float:
        """Epsilon after a round."""
        return epsilon(self.noise, max(self._after(plan, samples).values(), default=0), self.delta)

    def charge(self, plan: RoundPlan, samples: Mapping[int, int]) -> None:
        """Write down that a round begins, as if all of its clients stayed to its end."""
        self.releases = self._after(plan, samples)
        written = {"releases": {str(client): count for client, count in sorted(self.releases.items())}}
        write_atomic(self.path, (json.dumps(written) + "\n").encode())

    def _after(self, plan: RoundPlan, samples: Mapping[int, int]) -> dict[int, int]:
        assert plan.privacy is not None
        each = plan.privacy.releases(plan.phi)
        counts = dict(self.releases)
        for client in plan.clients:
            steps = plan.local_epochs * -(-samples.get(client, 0) // plan.batch_size)
            counts[client] = counts.get(client, 0) + each * steps
        return counts


def _read(path: Path) -> dict[int, int]:
    try:
        counts = json.loads(path.read_text(encoding="utf-8"))["releases"]
        return {int(client): int(count) for client, count in counts.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} does not say what the run has spent of its privacy, so it cannot go on: {error}"
        ) from None
