#!/usr/bin/env bash
# flwr 1.42.0 with torch 2.14.1: federated averaging sets batch norm's counter of batches back, from 1 to 0 for six clients.
#
# A good guess: where all clients have counted the same number of batches, their average is that number; integers in a
# state dict are either averaged exactly or left alone.
# Seen: FedAvg multiplies integers too by each client's weight, 1/6, and adds up floating-point numbers: 0.9999999999999999,
# sent on as float64. load_state_dict copies that into the int64 buffer without a word, which cuts it to 0; 25 batches at
# three clients become 24. With momentum=None, where the running statistics are the mean over all batches so far, a count
# of 0 makes the next batch replace them altogether; whatever else is an integer buffer suffers likewise.
set -euo pipefail
source "$(dirname "$0")/environment.bash"
install flwr==1.42.0 numpy==2.4.6 torch==2.14.1
"$python" - 2>"$folder/log" <<'PY' || { cat "$folder/log"; exit 1; }
from importlib.metadata import version

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from torch import nn

TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1  # as Flower's process of a ServerApp does


def averaged(clients, batches):
    """Batch norm after every client trained the same number of batches, and FedAvg averaged them."""
    replies = []
    for _ in range(clients):
        norm = nn.BatchNorm1d(2, momentum=None)
        for _ in range(batches):
            norm(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        content = RecordDict({"arrays": ArrayRecord(norm.state_dict()), "metrics": MetricRecord({"num-examples": 10})})
        replies.append(Message(content, dst_node_id=1, message_type="train"))
    arrays, _ = FedAvg().aggregate_train(1, replies)
    norm = nn.BatchNorm1d(2, momentum=None)
    norm.load_state_dict(arrays.to_torch_state_dict())
    return arrays["num_batches_tracked"].numpy().item(), norm


average, norm = averaged(clients=6, batches=1)
mean = norm.running_mean.clone()
norm(torch.full((2, 2), 100.0))
other, longer = averaged(clients=3, batches=25)
print(f"flwr {version('flwr')}, torch {torch.__version__}: num_batches_tracked after FedAvg, and as the model then has it:")
print(f"6 clients of 1 batch: {average!r}, {0 if norm.num_batches_tracked == 1 else norm.num_batches_tracked - 1}; ", end="")
print(f"3 clients of 25: {other!r}, {longer.num_batches_tracked.item()}.")
print(f"With momentum=None one more batch, of hundreds, moves the running mean from {mean.tolist()} to {norm.running_mean.tolist()}.")
assert average < 1 and norm.num_batches_tracked == 1, "changed: the counter of six clients is not set back"
assert torch.allclose(norm.running_mean, torch.tensor(100.0)), "changed: what was averaged is not forgotten"
assert longer.num_batches_tracked == 24, "changed: the counter of three clients is not set back"
PY
