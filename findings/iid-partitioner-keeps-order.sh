#!/usr/bin/env bash
# flwr-datasets 0.6.1: IidPartitioner on a data set sorted by label gives every client a single class.
#
# A good guess: an IID partitioner draws each client's samples at random, so that ten clients of a data set with ten
# classes have about all ten each; its docstring says that each partition is "sampled randomly from the dataset".
# Seen: it cuts the data set into contiguous pieces and never shuffles. Client k has class k and nothing else: the most
# heterogeneous split there is. What shuffles is FederatedDataset (shuffle=True), so the same partitioner is IID there, and
# is not where one sets `partitioner.dataset` oneself, as one does with data of one's own. DirichletPartitioner with a
# huge alpha, which one would call its equal, does mix.
set -euo pipefail
source "$(dirname "$0")/environment.bash"
export HF_HUB_OFFLINE=1
install flwr-datasets==0.6.1 datasets==4.8.5
"$python" - <<'PY'
from importlib.metadata import version

from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner

data = Dataset.from_dict({"label": [label for label in range(10) for _ in range(100)]})


def classes(partitioner):
    partitioner.dataset = data
    return [len(set(partitioner.load_partition(client)["label"])) for client in range(10)]


iid = classes(IidPartitioner(10))
mixed = classes(DirichletPartitioner(10, partition_by="label", alpha=1e6))
print(f"flwr-datasets {version('flwr-datasets')}: 1,000 samples of 10 classes, sorted by label, for 10 clients.")
print(f"Classes of each client: IidPartitioner {iid}, DirichletPartitioner with alpha 1e6 {mixed}.")
assert iid == [1] * 10, "changed: IidPartitioner no longer cuts in the order of the data set"
assert min(mixed) == 10, "changed: a Dirichlet split with a huge alpha no longer mixes"
PY
