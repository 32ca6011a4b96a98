"""A client of Flower's own FedAvg: eight images and a step of Adam."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from networks import resnet16
from torch import Tensor, nn
from torch.nn import functional as F

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """One pass over the client's images."""
    network, images, labels = _load(message, context)
    optimizer = torch.optim.Adam(network.train().parameters(), 1e-3)
    loss = F.cross_entropy(network(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    metrics = MetricRecord({"loss": loss.item(), "num-examples": len(labels)})
    content = RecordDict({"arrays": ArrayRecord(network.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


@app.evaluate()
@torch.no_grad()
def evaluate(message: Message, context: Context) -> Message:
    """The loss over the client's images."""
    network, images, labels = _load(message, context)
    loss = F.cross_entropy(network.eval()(images), labels).item()
    return Message(
        content=RecordDict({"metrics": MetricRecord({"loss": loss, "num-examples": len(labels)})}), reply_to=message
    )


def _load(message: Message, context: Context) -> tuple[nn.Module, Tensor, Tensor]:
    network = resnet16(num_classes=10, image_size=16)
    network.load_state_dict(message.content["arrays"].to_torch_state_dict())
    drawn = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
    return network, torch.rand(8, 3, 16, 16, generator=drawn), torch.randint(10, (8,), generator=drawn)
