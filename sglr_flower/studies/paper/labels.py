"""What the labels of an experiment's cells mean: run-config values, and what the paper reports for them."""

from __future__ import annotations

from collections.abc import Mapping

from sglr_flower.run.config import Scalar
from sglr_flower.run.settings import parse_assignment
from sglr_flower.studies.paper import published
from sglr_flower.studies.paper.cells import Label


def split_settings(alpha: float, phi: float, phase: str = "all") -> dict[str, Scalar]:
    """SplitLr with ``alpha`` and SplitAvg with ``phi``, under the name of the method that this is."""
    method = {(False, False): "psl", (True, False): "slr", (False, True): "sgl", (True, True): "sglr"}[
        alpha > 0, phi > 0
    ]
    return {"method": method, "splitlr-alpha": alpha, "splitavg-phi": phi, "splitavg-phase": phase}


def by_alpha_and_phi(labels: Mapping[str, Label]) -> dict[str, Scalar]:
    """SplitLr and SplitAvg by the labels ``alpha`` and ``phi``; without one it is 0."""
    return split_settings(float(labels.get("alpha", 0)), float(labels.get("phi", 0)))


def by_phase(labels: Mapping[str, Label]) -> dict[str, Scalar]:
    """SplitAvg while the label ``phase`` lasts."""
    phase = str(labels["phase"])
    if phase == "none":
        return split_settings(1.0, 0.0)
    return split_settings(1.0, 1.0, "all" if phase == "always" else phase)


_HALVES = {"sglr": (0.5, 0.5), "slr": (0.5, 0.0), "sgl": (0.0, 0.5)}
"""alpha and phi of the methods that have them, where methods are compared."""


def by_method(labels: Mapping[str, Label]) -> dict[str, Scalar]:
    """The label ``method``, with the same alpha and phi where it has them."""
    method = str(labels["method"])
    alpha, phi = _HALVES.get(method, (0.0, 0.0))
    return {**split_settings(alpha, phi), "method": method}


def by_initial(labels: Mapping[str, Label]) -> dict[str, Scalar]:
    """The same, with the initial segments of the label ``segments``."""
    return {**by_method(labels), "initial-segments": str(labels["segments"])}


def by_codec(labels: Mapping[str, Label]) -> dict[str, Scalar]:
    """PSL with the label ``codec``: of both directions, or UP+DOWN."""
    up, _, down = str(labels["codec"]).partition("+")
    return {**split_settings(0.0, 0.0), "wire-up": up, "wire-down": down or up}


def _with_keys(labels: Mapping[str, Label], label: str) -> dict[str, Scalar]:
    """The run-config values that a label names as ``key=value`` with spaces between, or ``none``."""
    named = str(labels[label]).split()
    return dict(parse_assignment(pair) for pair in named if pair != "none")


def by_defence(labels: Mapping[str, Label]) -> dict[str, Scalar]:
    """PSL with the keys that the label ``defence`` names."""
    # Noise follows from a number, so that the table can be made again: this attacker does not use that.
    return {**split_settings(0.0, 0.0), "noise-seed": 0, **_with_keys(labels, "defence")}


def by_privacy(labels: Mapping[str, Label]) -> dict[str, Scalar]:
    """SGLR with the keys that the label ``privacy`` names."""
    bounds: dict[str, Scalar] = {"dp-clip": 0.05, "dp-server-clip": 2.0}
    return {**split_settings(0.5, 0.5), **bounds, **_with_keys(labels, "privacy")}


def alexnet_by_method(labels: Mapping[str, Label]) -> dict[str, Scalar]:
    """As `by_method`, with AlexNet."""
    return {**by_method(labels), "model": "alexnet"}


def paper_accuracy(labels: Mapping[str, Label]) -> float | None:
    """The paper's accuracy for clients, alpha and phi (Table 2), in percent."""
    return published.accuracy(int(labels["clients"]), float(labels.get("alpha", 0)), float(labels.get("phi", 0)))


def paper_of_method(labels: Mapping[str, Label]) -> float | None:
    """The same for a method."""
    method = str(labels["method"])
    if method != "psl" and method not in _HALVES:
        return None
    return published.accuracy(int(labels["clients"]), *_HALVES.get(method, (0.0, 0.0)))


def paper_reconstruction(labels: Mapping[str, Label]) -> float | None:
    """The paper's cross-entropy of reconstructions for clients and phi (Table 5)."""
    return published.reconstruction(int(labels["clients"]), float(labels["phi"]))


def paper_alexnet(labels: Mapping[str, Label]) -> float | None:
    """The paper's accuracy of AlexNet for a method (Table 4), in percent."""
    row = published.alexnet(str(labels["method"]))
    return row.accuracy if row else None


_CYCLE = "cyclic:low=0.4,high=1.6,period=5"
SCHEDULES = {
    "constant": ("constant", ""),
    "step": ("step", ""),
    "cosine": ("cosine", ""),
    "cyclic-in-phase": (_CYCLE, ""),
    "cyclic-out-of-phase": (_CYCLE, f"{_CYCLE},phase=0.5"),
    "one-cycle": ("one-cycle:low=0.2,high=2", ""),
}
"""What ``cycles`` compares: the schedule of both sides, or the clients' and the server's."""


def by_schedule(labels: Mapping[str, Label]) -> dict[str, Scalar]:
    """SGLR with the learning rates of the label ``schedule``."""
    both, server = SCHEDULES[str(labels["schedule"])]
    return {**split_settings(0.5, 0.5), "lr-schedule": both, "server-lr-schedule": server}


def paper_of_schedule(labels: Mapping[str, Label]) -> float | None:
    """The paper's accuracy where the label ``schedule`` is what it trained with, in percent."""
    return published.accuracy(int(labels["clients"]), 0.5, 0.5) if labels["schedule"] == "step" else None
