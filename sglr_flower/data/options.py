"""What a run-config says of how a data set is read, beyond its name, folder, seed and image size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """How a data set is read; hashable.

    Attributes
    ----------
    classes : tuple of str
        The classes of dataset ``folder``, by class number, of which its folder may then have any part; empty: it has
        all of them.
    """

    classes: tuple[str, ...] = ()


DEFAULT = Options()
