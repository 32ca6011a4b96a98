"""Flower's own FedAvg."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from networks import resnet16

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds."""
    initial = ArrayRecord(resnet16(num_classes=10, image_size=16).state_dict())
    rounds = int(context.run_config["num-server-rounds"])
    result = FedAvg().start(grid=grid, initial_arrays=initial, num_rounds=rounds)
    assert len(result.train_metrics_clientapp) == len(result.evaluate_metrics_clientapp) == rounds
    print("ALL ROUNDS DONE")
