"""A client's network as files that need this package no more: safetensors weights, and a program of `torch.export`."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from rich.console import Console
from torch import nn

from sglr_flower import models
from sglr_flower.errors import UserError
from sglr_flower.run import assembly
from sglr_flower.run.checkpoint import packable
from sglr_flower.split import methods
from sglr_flower.studies.trained import network as trained
from sglr_flower.studies.trained.network import Trained

FORMAT = "sglr-flower export 1"
"""``format`` in ``model.json``, by which an export of ours is known."""

_FILES = ("model.safetensors", "model.pt2", "README.md", "model.json")
"""In the order of their replacement: ``model.json`` last, it says what the others are."""


def export(model: Trained, client: int, out: Path | None = None) -> Path:
    """Write a client's unsplit network into a folder.

    Parameters
    ----------
    model : Trained
        What a run has trained.
    client : int
        One of ``model.clients``.
    out : Path | None
        New or empty, or an export that is to be replaced; None: ``export/client-I`` in the run directory.

    Returns
    -------
    Path
        The folder: ``model.safetensors`` (``state_dict``), ``model.pt2`` (`torch.export`, any batch size),
        ``model.json`` (classes, how pixels become its input, where it comes from) and ``README.md``.

    Raises
    ------
    UserError
        If the run has no such client, the folder holds something else, or the network cannot be exported.
    """
    network = model.network(client)
    folder = (out or model.run_dir / "export" / f"client-{client}").expanduser().absolute()
    check_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Made beside and then moved, so that an interrupted export leaves the one before as it was.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent) as scratch:
        made = Path(scratch)
        safetensors.torch.save_file(packable(network.state_dict()), made / "model.safetensors")
        torch.export.save(_program(network, model), made / "model.pt2")
        (made / "README.md").write_text(_readme(model, client), encoding="utf-8")
        text = json.dumps(describe(model, client), indent=2, ensure_ascii=False)
        (made / "model.json").write_text(text + "\n", encoding="utf-8")
        folder.mkdir(exist_ok=True)
        for name in _FILES:
            (made / name).replace(folder / name)
    return folder


def describe(model: Trained, client: int) -> dict[str, Any]:
    """What ``model.json`` holds: what the network is, reads and answers, and how good it was in the run."""
    config = model.config
    last = model.history.last_evaluated()
    return {
        "format": FORMAT,
        "classes": list(model.classes),
        "input": {
            "shape": ["batch", config.channels or 3, model.image_size, model.image_size],
            "dtype": config.dtype,
            "from": "grey" if model.channels == 1 else "RGB",
            "pixels": "0..255, resized (bilinear, antialiased), "
            + ("the one channel repeated to 3, " if model.channels == 1 and config.channels != 1 else "")
            + "divided by 127.5, minus 1",
        },
        "output": {"shape": ["batch", len(model.classes)], "meaning": "logits"},
        "method": config.method,
        "model": config.model,
        "cut": "" if methods.get(config.method).whole else config.cut or models.get(config.model).cut,
        "dataset": config.dataset,
        "client": client,
        "round": model.server_round,
        # Accuracies are fractions in [0, 1]; a client's are of its best validation round, which may not be this one.
        model.history.score.name: {
            "client_at_its_best_validation_round": model.history.named_best(client),
            "last_evaluated_round": last.round if last else None,
            f"last_test_{model.history.score.name}_mean_over_clients": last.test_score_mean if last else None,
        },
        "sglr-flower": version("sglr-flower"),
        "torch": torch.__version__,
    }


def check_folder(folder: Path) -> None:
    """Find out whether a folder may be written.

    Raises
    ------
    UserError
        If it is a file, or holds something that is not an export of ours.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder}: it is a file, it must be a new folder, an empty one or an export")
    if folder.is_dir() and any(folder.iterdir()) and not _is_export(folder):
        raise UserError(
            f"--out {folder}: it holds other files and is left as it is; give a new folder, an empty one or an export"
        )


def command(run_dir: Path, client: int | None, out: Path | None, data_dir: Path | None) -> None:
    """``sglr export``: write one client's network and say where."""
    model = trained.load(run_dir, data_dir)
    chosen = model.best_client() if client is None else client
    folder = export(model, chosen, out)
    Console().print(f"client {chosen} of round {model.server_round}: {folder}", highlight=False, soft_wrap=True)


def _program(network: nn.Sequential, model: Trained) -> torch.export.ExportedProgram:
    example = torch.zeros(
        2, model.config.channels or 3, model.image_size, model.image_size, dtype=assembly.dtype(model.config)
    )
    # Two images: torch would take a batch of one for a constant.
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    with torch.no_grad(), _attention_in_parts():
        try:
            return torch.export.export(network, (example,), dynamic_shapes=dynamic)
        except Exception:  # it raises of many kinds, for what it cannot trace
            # Slower, and reads the code instead of running it: it keeps a batch size free that was asked with len(x),
            # as our vit does.
            try:
                return torch.export.export(network, (example,), dynamic_shapes=dynamic, strict=True)
            except Exception as error:
                reason = str(error).strip().partition("\n")[0]
                raise UserError(
                    f"model = {model.config.model!r} cannot be exported by torch.export: {reason}"
                ) from error


@contextlib.contextmanager
def _attention_in_parts() -> Iterator[None]:
    """Without torch's one operator for a whole attention layer, which torch 2.8 cannot export."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _is_export(folder: Path) -> bool:
    try:
        described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(described, dict) and str(described.get("format", "")).startswith("sglr-flower export")


def _readme(model: Trained, client: int) -> str:
    size, kind = model.image_size, "L" if model.channels == 1 else "RGB"
    pixels = f'ImageOps.exif_transpose(Image.open("image.png")).convert("{kind}").resize(({size}, {size}), 2)'
    array = (
        f"numpy.array({pixels})[..., None]" if model.config.channels == 1 else f'numpy.array({pixels}.convert("RGB"))'
    )
    return f"""# {model.config.model} of client {client}, trained with {model.config.method} on {model.config.dataset}

Client {client}'s segment and the server segment after round {model.server_round} as one network, exported by
sglr-flower {version("sglr-flower")}. This loads it with torch, NumPy and Pillow alone:

```python
import json, numpy, torch; from PIL import Image, ImageOps
network = torch.export.load("model.pt2").module()
image = {array}
pixels = torch.tensor(image).permute(2, 0, 1)[None].to(torch.{model.config.dtype}) / 127.5 - 1
print(json.load(open("model.json"))["classes"][network(pixels).argmax()])
```

`model.safetensors` has the weights by the names of the network's `state_dict`, `model.json` says what goes in and out.
"""
