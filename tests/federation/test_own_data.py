"""Partition "own": a node's images are dealt to the clients that it hosts, and to nobody else."""

from __future__ import annotations

import pytest
import torch

from sglr_flower.data import partition
from sglr_flower.errors import UserError
from sglr_flower.run import assembly, checks
from sglr_flower.run.config import RunConfig

LABELS = torch.tensor([0] * 10 + [1] * 5 + [2] * 7)


def config(**changes: object) -> RunConfig:
    values = {"partition": "own", "num-clients": 6, "samples-per-client": 0}
    return RunConfig.parse({**values, **{key.replace("_", "-"): value for key, value in changes.items()}})


def test_all_images_are_dealt_evenly_and_each_once() -> None:
    shares = partition.deal(LABELS, 3, 0, seed=1)
    assert sorted(torch.cat(shares).tolist()) == list(range(len(LABELS)))
    for label in range(3):
        counts = [int((LABELS[share] == label).sum()) for share in shares]
        assert max(counts) - min(counts) <= 1


def test_samples_per_client_is_a_limit() -> None:
    shares = partition.deal(LABELS, 3, 4, seed=1)
    assert [len(share) for share in shares] == [4, 4, 4]
    assert len(set(torch.cat(shares).tolist())) == 12
    assert [len(share) for share in partition.deal(LABELS, 3, 100, seed=1)] == [8, 7, 7]


def test_a_node_with_fewer_images_than_clients_is_refused() -> None:
    with pytest.raises(UserError, match="this node has 22 train samples for 23 clients"):
        partition.deal(LABELS, 23, 0, seed=1)


def test_the_clients_of_a_node_share_its_images_and_no_other_clients() -> None:
    train = assembly.splits(config()).train
    data = assembly.client_data(config(), [2, 3])
    assert sum(len(images) for images in data.values()) == len(train)
    assert list(data) == [2, 3]
    # The node's share is the same whichever numbers its clients have.
    other = assembly.client_data(config(), [0, 1])
    assert torch.equal(data[2].indices, other[0].indices)


def test_it_is_refused_where_no_node_has_data_of_its_own() -> None:
    with pytest.raises(UserError, match=r"partition = 'own'.*--federation"):
        checks.check(config())
    checks.check(config(), own_data=True)


def test_it_is_refused_where_a_method_pools_all_data() -> None:
    with pytest.raises(UserError, match="centralized needs the data of all clients"):
        checks.check(config(method="centralized"), own_data=True)


def test_there_is_no_one_set_of_images_to_count() -> None:
    with pytest.raises(UserError, match="nothing to divide"):
        assembly.class_counts(config())
