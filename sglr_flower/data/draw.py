"""Seeded draws that every node and process repeats alike."""

import numpy as np
import numpy.typing as npt


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


def held_out(labels: npt.NDArray[np.int64], size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Hold a test set out in which the classes have their shares of the whole, as nearly as whole samples allow.

    The samples and their order are those of scikit-learn's ``train_test_split(..., test_size=size, stratify=labels,
    random_state=0)``, without the second and a half that every process would take to import scikit-learn. The seed is a
    constant because scores of two runs can be compared only on the same test set.

    Parameters
    ----------
    labels : numpy.ndarray
        int64 [n], class numbers from 0 up.
    size : int
        Samples of the test set, at most n.

    Returns
    -------
    tuple of numpy.ndarray
        int64 positions in `labels`: those that are left, and the test set.
    """
    draw = np.random.RandomState(0)
    counts = np.bincount(labels)
    of_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    kept = _shares(counts, len(labels) - size, draw)
    tested = _shares(counts - kept, size, draw)
    shuffled = [samples[draw.permutation(len(samples))] for samples in of_class]
    train = np.concatenate([samples[:k] for samples, k in zip(shuffled, kept, strict=True)])
    test = np.concatenate([samples[k : k + t] for samples, k, t in zip(shuffled, kept, tested, strict=True)])
    return draw.permutation(train), draw.permutation(test)


def _shares(counts: npt.NDArray[np.int64], size: int, draw: np.random.RandomState) -> npt.NDArray[np.int64]:
    """How many of each class are in a sample of a size: the whole part each, the rest to the largest fractions."""
    exact = counts / counts.sum() * size
    shares: npt.NDArray[np.float64] = np.floor(exact)
    fractions = exact - shares
    missing = int(size - shares.sum())
    for fraction in np.unique(fractions)[::-1]:
        if missing == 0:
            break
        (alike,) = np.nonzero(fractions == fraction)
        chosen = draw.choice(alike, size=min(len(alike), missing), replace=False)
        shares[chosen] += 1
        missing -= len(chosen)
    return shares.astype(np.int64)
