"""One's own data and network: three hospitals with tables of their own train one network, and none hands its table out.

python examples/own_data.py
"""

from functools import partial

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

import sglr_flower as sglr

table = load_breast_cancer()
inputs = torch.tensor(table.data, dtype=torch.float32)
inputs = (inputs - inputs[:400].mean(0)) / inputs[:400].std(0)
targets = torch.tensor(table.target)

run = sglr.SplitLearning(
    lower=lambda: nn.Sequential(nn.Linear(30, 16), nn.ReLU()),  # at each hospital
    upper=lambda: nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)),  # at the server
    clients=[(inputs[k:400:3], targets[k:400:3]) for k in range(3)],  # or torch data sets
    method=sglr.methods.sglr(alpha=0.5, phi=0.5),
    optimizer=partial(torch.optim.AdamW, lr=1e-3),
    batch_size=8,
)
for done in run.rounds(10):
    accuracy = run.evaluate((inputs[400:], targets[400:])).score
    print(f"round {done.number}: loss {done.loss:.4f}, accuracy {accuracy:.3f}, {done.bytes_up:,} bytes up")
network = run.network(client=0)  # an ordinary module: lower, then upper
print(network(inputs[400:402]).softmax(1))
