"""Small runs for integration tests, and the weights they end with."""

from __future__ import annotations

from pathlib import Path

from reference import Weights
from safetensors.torch import load_file


def final_weights(run_dir: Path) -> Weights:
    """Segments in a run's last checkpoint, the server's or its simulated nodes', named as in `reference.plain_loop`."""
    last = sorted((run_dir / "checkpoints").glob("round-*"))[-1]
    files = {"server": last / "server.safetensors"}
    clients = {path.stem: path for path in last.glob("clients/*")}
    if not clients:
        clients = {folder.name: max(folder.iterdir()) for folder in (run_dir / "nodes").glob("client-*")}
    files |= {f"client-{int(name.split('-')[1])}": path for name, path in sorted(clients.items())}
    return {
        part: {
            name.removeprefix("segment."): tensor
            for name, tensor in load_file(path).items()
            if name.startswith("segment.")
        }
        for part, path in files.items()
    }


def largest_difference(left: Weights, right: Weights) -> float:
    """The largest absolute difference of any weight or buffer; both must hold the same ones."""
    assert left.keys() == right.keys()
    largest = 0.0
    for part, weights in left.items():
        assert weights.keys() == right[part].keys()
        for name, tensor in weights.items():
            largest = max(largest, float((tensor.double() - right[part][name].double()).abs().max()))
    return largest


def distance(left: Weights, right: Weights) -> float:
    """Euclidean distance of all trainable weights of parts in both, batch-norm's running statistics left out."""
    total = 0.0
    for part in left.keys() & right.keys():  # other seeds draw other clients, and who has not trained has no file
        for name, tensor in left[part].items():
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
                total += float((tensor.double() - right[part][name].double()).square().sum())
    return total**0.5
