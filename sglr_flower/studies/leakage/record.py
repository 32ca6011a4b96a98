"""What attacks leave: their measures with intervals, their pictures, and a folder with both."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from sglr_flower import models
from sglr_flower.errors import UserError
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.run.rundir import read_json
from sglr_flower.studies.leakage.attack import Attack, Settings, threat
from sglr_flower.studies.leakage.pictures import Row, as_image, draw_rows, feature_maps
from sglr_flower.studies.report.groups import half_width
from sglr_flower.studies.trained.network import Trained

FOLDER, RESULT, EXAMPLES = "attack", "attack.json", "examples.safetensors"
"""In a run directory, and in there; the examples are ``original``, uint8, and ``reconstructed``, float32 in [0, 1]."""

_PICTURES = ("reconstructions.png", "feature_maps.png")
_FEATURE_MAPS = 8


@dataclass(frozen=True)
class Figure:
    """A measure over the attacks of a call.

    Attributes
    ----------
    mean : float
        Over the attacks.
    half_width : float | None
        Half the width of its 95 % interval (Student's t); None of one attack.
    """

    mean: float
    half_width: float | None


def figures(found: Sequence[Attack]) -> dict[str, Figure | None]:
    """Each measure over all attacks; None where it does not apply to such images."""
    every = [attack.measures() for attack in found]
    return {name: _figure([measures[name] for measures in every]) for name in every[0]}


def _figure(values: Sequence[float | None]) -> Figure | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    width = float(half_width(np.array(known, dtype=np.float64))) if len(known) > 1 else None
    return Figure(float(np.mean(known)), width)


def text(figure: Figure | None) -> str:
    """A measure as it is shown."""
    if figure is None:
        return "-"
    return f"{figure.mean:.4f}" + ("" if figure.half_width is None else f" ± {figure.half_width:.4f}")


def check_folder(folder: Path, model: Trained, settings: Settings) -> None:
    """Find out whether a folder that the user chose may be written.

    Raises
    ------
    UserError
        If it is a file, or holds anything but the result of this very attack on this run.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder}: it is a file, it must be a new folder or an empty one")
    if folder.is_dir() and any(folder.iterdir()):
        there = read_json(folder / RESULT)
        if (there.get("run_dir"), there.get("settings")) != (str(model.run_dir), asdict(settings)):
            raise UserError(
                f"--out {folder}: it holds other files, or another attack, and is left as it is; give a new folder"
            )


def is_attacked(run_dir: Path, config: RunConfig) -> bool:
    """Whether a run directory holds the attack by default on the run as it is after its last round."""
    there = read_json(run_dir / FOLDER / RESULT)
    done = there.get("run", {}).get("round") == config.num_server_rounds
    return done and there.get("settings") == asdict(Settings(seed=config.seed))


def save(model: Trained, settings: Settings, found: Sequence[Attack], out: Path | None = None) -> Path:
    """Write attacks down: ``attack.json``, ``reconstructions.png``, ``feature_maps.png`` and ``examples.safetensors``.

    Returns
    -------
    Path
        The folder: ``out``, or ``attack`` in the run directory, where an attack that is not the one by default has a
        folder of its own: ``attack/knows-others``.

    Raises
    ------
    UserError
        As `check_folder`, for ``out``.
    """
    folder = (out or model.run_dir / FOLDER / settings.name(model.config.seed)).expanduser().absolute()
    if out is not None:
        check_folder(folder, model, settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    result = json.dumps(_json(model, settings, found), indent=2) + "\n"
    first = found[0]
    pictures = dict(zip(_PICTURES, (_reconstructions(model, found), _feature_maps(model, first)), strict=True))
    examples = safetensors.torch.save({"original": first.examples, "reconstructed": first.reconstructed})
    files = {**pictures, EXAMPLES: examples, RESULT: result.encode()}
    # Made beside and then moved, the result last: it says what the others are.
    with tempfile.TemporaryDirectory(prefix=".attack-", dir=folder.parent) as scratch:
        for name, content in files.items():
            if content is not None:
                (Path(scratch) / name).write_bytes(content)
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            if content is not None:
                (Path(scratch) / name).replace(folder / name)
    return folder


def _reconstructions(model: Trained, found: Sequence[Attack]) -> bytes:
    rows = []
    for number, attack in enumerate(found, start=1):
        suffix = f"\nattack {number}" if len(found) > 1 else ""
        rows.append(Row(f"client {attack.client}{suffix}", [as_image(pixels) for pixels in attack.examples]))
        rows.append(Row("reconstructed", list(attack.reconstructed)))
    config = model.config
    entropy = figures(found)["cross_entropy"]
    title = f"{config.method} with {config.model} on {config.dataset}, round {model.server_round}: "
    return draw_rows(rows, f"{title}binary cross-entropy {text(entropy)}")


def _feature_maps(model: Trained, attack: Attack) -> bytes | None:
    """None where smashed data have no places in the image."""
    rows = [
        Row(f"image {number}", [as_image(pixels), *feature_maps(smashed, _FEATURE_MAPS)])
        for number, (pixels, smashed) in enumerate(zip(attack.examples, attack.feature_maps, strict=True), start=1)
    ]
    if len(rows[0].tiles) == 1:
        return None
    return draw_rows(rows, f"the first feature maps at the cut, client {attack.client}, round {model.server_round}")


def _json(model: Trained, settings: Settings, found: Sequence[Attack]) -> dict[str, Any]:
    config, plan = model.config, assembly.plan(model.config, model.server_round)  # which knows what the method uses
    return {
        "run_dir": str(model.run_dir),
        "run": {
            "method": config.method,
            "model": config.model,
            "cut": config.cut or models.get(config.model).cut,
            "dataset": config.dataset,
            "clients": len(model.clients),
            "alpha": plan.alpha,
            "phi": plan.phi,
            "round": model.server_round,
        },
        "settings": asdict(settings),
        "threat": threat(settings, found[0], len(model.clients)),
        "measures": {name: figure and asdict(figure) for name, figure in figures(found).items()},
        "attacks": [{"client": attack.client, "images": attack.images, **attack.measures()} for attack in found],
        "sglr-flower": version("sglr-flower"),
        "torch": torch.__version__,
    }
