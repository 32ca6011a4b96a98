"""Small runs for integration tests, and the weights they end with."""

from __future__ import annotations

from pathlib import Path

from reference import Weights
from safetensors.torch import load_file

from sglr_flower.run import assembly
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.split.optimizers import segment_weights


def final_weights(run_dir: Path) -> Weights:
    """Segments in a run's last checkpoint, the server's or its simulated nodes', named as in `reference.plain_loop`.

    A client that has not trained has no file: its segment is the one that all share, or its initial one. Of devices
    that keep their clients to themselves there are none.
    """
    last = sorted((run_dir / "checkpoints").glob("round-*"))[-1]
    files = {"server": last / "server.safetensors"}
    clients = {path.stem: path for path in last.glob("clients/*")}
    if not clients:
        clients = {folder.name: max(folder.iterdir()) for folder in (run_dir / "nodes").glob("client-*")}
    files |= {f"client-{int(name.split('-')[1])}": path for name, path in sorted(clients.items())}
    found = {part: segment_weights(load_file(path)) for part, path in files.items()}
    if clients:
        config, shared = RunDirectory(run_dir).read_config(), last / "shared.safetensors"
        model = assembly.model(config)
        for client in assembly.clients(config):
            if f"client-{client}" not in found:
                initial = load_file(shared) if shared.exists() else model.client_segment(client).state_dict()
                found[f"client-{client}"] = dict(initial)
    return found


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
    """Euclidean distance of all trainable weights, batch-norm's running statistics left out."""
    total = 0.0
    for part, weights in left.items():
        for name, tensor in weights.items():
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
                total += float((tensor.double() - right[part][name].double()).square().sum())
    return total**0.5
