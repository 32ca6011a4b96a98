"""Seeded draws that every node and process repeats alike."""

from zlib import crc32

import numpy as np
import numpy.typing as npt


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Random numbers of a run for one purpose.

    Two purposes of the same run (say "validation" and "partition") get independent streams, so that the
    number of draws made for one never shifts the other.

    Parameters
    ----------
    seed : int
        The run's seed, at least 0.
    purpose : str
        What the numbers are for.

    Returns
    -------
    numpy.random.Generator
        The same stream in every process.
    """
    # crc32 and not hash(): Python salts the hash of a string anew in every process.
    return np.random.default_rng([seed, crc32(purpose.encode())])


def balanced_order(labels: npt.NDArray[np.int64], draw: np.random.Generator) -> npt.NDArray[np.int64]:
    """Order the samples so that every beginning of the order is as class-balanced as the labels allow.

    The order is dealt in rounds of one random sample of every class that still has one. A class that runs out
    leaves its turns to the others.

    Parameters
    ----------
    labels : numpy.ndarray
        int64 [n], class numbers from 0 up.
    draw : numpy.random.Generator
        Decides which sample of a class comes first, and which class comes first in each round.

    Returns
    -------
    numpy.ndarray
        int64 [n], a permutation of ``range(n)``.
    """
    shuffled = draw.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    first_of_class = np.repeat(np.cumsum(counts) - counts, counts)
    dealt_in_round = np.arange(len(labels)) - first_of_class
    turn_of_class = draw.permutation(len(counts))
    return by_class[np.lexsort((turn_of_class[labels[by_class]], dealt_in_round))]
