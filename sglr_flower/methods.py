"""The methods by name: each a composition of the two rules that distinguish them.

All four are parallel split learning; they differ in the server's learning rate and in the cut gradient sent back.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """Which of the paper's two remedies a method uses (arXiv 2112.05929, Algorithm 1).

    Attributes
    ----------
    split_lr : bool
        The server's rate is accelerated by ``splitlr-alpha`` (eq. 13); otherwise alpha is 0.
    split_avg : bool
        Cut gradients are averaged over ``splitavg-phi`` of the clients (eq. 16); otherwise phi is 0.
    """

    split_lr: bool
    split_avg: bool


_METHODS = {
    "sglr": Method(split_lr=True, split_avg=True),
    "slr": Method(split_lr=True, split_avg=False),
    "sgl": Method(split_lr=False, split_avg=True),
    "psl": Method(split_lr=False, split_avg=False),
}


def get(name: str) -> Method:
    """Look a method up.

    Raises
    ------
    ValueError
        If it is unknown; the message lists the known ones.
    """
    try:
        return _METHODS[name]
    except KeyError:
        raise ValueError(f"it must be one of {', '.join(_METHODS)}") from None
