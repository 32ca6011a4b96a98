#!/usr/bin/env bash
# flwr-datasets 0.6.1: DirichletPartitioner gives the first client half, the last one half as much again, whatever alpha is.
#
# A good guess: with a huge alpha all shares are equal, up to a sample; what rounding leaves over falls here and there, and
# the clients of a Dirichlet split are exchangeable: none is better off for its number.
# Seen: for each class the cumulated shares are rounded down to whole samples, and the cuts lie at those numbers. The first
# client's end is rounded down for every class, the last one's beginning too, and everybody else has both. So with 10 samples
# of a class for 10 clients the first has half a sample too little of each class, the last half a sample too much: over
# 10 classes 5 and 15 samples where the others have 10. Where client 0 is the one that is watched, logged or attacked, it is the one with
# half the data; in an average weighted by samples the last one counts three times the first.
set -euo pipefail
source "$(dirname "$0")/environment.bash"
export HF_HUB_OFFLINE=1
install flwr-datasets==0.6.1 datasets==4.8.5
"$python" - <<'PY'
from importlib.metadata import version

from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner

CLIENTS, SEEDS = 100, 20
data = Dataset.from_dict({"label": [index % 10 for index in range(1000)]})


def sizes(alpha, seed):
    partitioner = DirichletPartitioner(CLIENTS, "label", alpha, min_partition_size=1, seed=seed)
    partitioner.dataset = data
    return [len(partitioner.load_partition(client)) for client in range(CLIENTS)]


def mean(values):
    return sum(values) / len(values)


print(f"flwr-datasets {version('flwr-datasets')}: 1,000 samples of 10 classes for 100 clients, mean of {SEEDS} seeds.")
for alpha in (10.0, 1000.0):
    drawn = [sizes(alpha, seed) for seed in range(SEEDS)]
    first, last = mean([row[0] for row in drawn]), mean([row[-1] for row in drawn])
    between = mean([mean(row[1:-1]) for row in drawn])
    print(f"alpha {alpha:g}: the first client {first:.2f} samples, those between {between:.2f}, the last {last:.2f}.")
    assert first < 0.6 * between, "changed: the first client has its share"
    assert last > 1.3 * between, "changed: the last client has no more than its share"
    assert 9.9 < between < 10.1, "changed: those between have other shares than a tenth of a class each"
PY
