#!/usr/bin/env bash
# flwr 1.42.0: FedAvg of float16 weights that are equal at all clients is not those weights: of 1,000 clients' ones 0.9785.
#
# A good guess: an average of equal numbers is that number, up to one rounding of the result, 0.05 % at most; sums are
# accumulated wider than what is summed, as numpy.mean and torch's reductions do for float16.
# Seen: a client's share, 1/1000, is rounded to float16, so is every product, and the sum is kept in float16, where a thousandth
# added to a number near one is rounded each time. Weights that nobody changed come back 6 % off at 1,000
# clients. So half the bytes on the way cost the model more than its last digits, and the more clients, the more.
set -euo pipefail
source "$(dirname "$0")/environment.bash"
install flwr==1.42.0 numpy==2.4.6
"$python" - 2>"$folder/log" <<'PY' || { cat "$folder/log"; exit 1; }
from importlib.metadata import version

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # as Flower's process of a ServerApp does


def averaged(weights, clients):
    metrics = MetricRecord({"num-examples": 10})
    content = RecordDict({"arrays": ArrayRecord({"w": Array(weights)}), "metrics": metrics})
    replies = [Message(content, dst_node_id=1, message_type="train") for _ in range(clients)]
    return FedAvg().aggregate_train(1, replies)[0]["w"].numpy()


ones = np.ones(3, np.float16)
few, many = averaged(ones, 100), averaged(ones, 1000)
weights = np.random.default_rng(0).normal(0, 0.05, 1000).astype(np.float16)
back = averaged(weights, 1000)
error = np.linalg.norm(back.astype(np.float64) - weights) / np.linalg.norm(weights.astype(np.float64))
mean = np.tile(ones, (1000, 1)).mean(0)[0]
print(f"flwr {version('flwr')}: FedAvg of float16 ones, equal at all of 100 clients: {few[0]}; of 1,000: {many[0]}, by numpy.mean {mean}.")
print(f"1,000 weights of standard deviation 0.05, equal at all of 1,000 clients: {100 * error:.1f} % off.")
assert many.dtype == np.float16 and many[0] < 0.985, "changed: a thousand equal ones lose less than 1.5 %"
assert error > 0.02, "changed: equal weights are averaged to within 2 %"
PY
