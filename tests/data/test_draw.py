"""The seeded draws."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglr_flower.data.draw import balanced_order, held_out
from sglr_flower.seeds import numpy_generator as generator

class_lists = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(lambda values: np.array(values, np.int64))


def test_generator_is_the_same_in_another_process():
    code = "from sglr_flower.seeds import numpy_generator; print(numpy_generator(7, 'partition').integers(1 << 40))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == generator(7, "partition").integers(1 << 40)


@pytest.mark.parametrize("other", [(8, "partition"), (7, "validation")])
def test_generator_depends_on_seed_and_purpose(other):
    assert generator(7, "partition").integers(1 << 40) != generator(*other).integers(1 << 40)


def test_balanced_order_deals_one_of_each_class_per_round():
    labels = np.array([0, 0, 0, 1, 1, 2])
    dealt = labels[balanced_order(labels, generator(0, "test"))]
    assert sorted(dealt[:3]) == [0, 1, 2]
    assert sorted(dealt[3:5]) == [0, 1]
    assert dealt[5] == 0


@given(labels=class_lists, seed=st.integers(0, 100))
def test_every_beginning_of_a_balanced_order_is_as_balanced_as_the_labels_allow(labels, seed):
    order = balanced_order(labels, generator(seed, "test"))
    assert sorted(order) == list(range(len(labels)))
    available = np.bincount(labels)
    for length in range(1, len(labels) + 1):
        counts = np.bincount(labels[order[:length]], minlength=len(available))
        # A class may be behind the fullest one by more than one sample only when it has no more.
        assert all((counts >= counts.max() - 1) | (counts == available))


@pytest.mark.parametrize("seed", range(20))
def test_held_out_is_the_test_set_that_scikit_learn_draws(seed):
    from sklearn.model_selection import train_test_split

    draw = np.random.default_rng(seed)
    labels = draw.permutation(np.repeat(np.arange(6), draw.integers(5, 40, 6)))
    size = int(draw.integers(6, len(labels) // 2))
    train, test = train_test_split(np.arange(len(labels)), test_size=size, stratify=labels, random_state=0)
    found = held_out(labels, size)

    assert np.array_equal(found[0], train)
    assert np.array_equal(found[1], test)
