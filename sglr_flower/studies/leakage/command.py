"""The command ``sglr attack``: attacks a run's clients, shows what came of it and writes it down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from sglr_flower.errors import UserError
from sglr_flower.studies.leakage.attack import Attack, Settings, attacks, threat
from sglr_flower.studies.leakage.record import check_folder, figures, save, text
from sglr_flower.studies.trained import network as trained
from sglr_flower.studies.trained.network import Trained

_ROWS = {
    "cross_entropy": "binary cross-entropy (nats per pixel)",
    "entropy": "  its floor: of the images with themselves",
    "mean_image_cross_entropy": "  of the auxiliary images' mean, without smashed data",
    "auxiliary_cross_entropy": "  of the auxiliary images themselves",
    "mse": "mean squared error",
    "mean_image_mse": "  of the auxiliary images' mean",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "distance_correlation": "distance correlation, image and smashed data",
    "corrected_distance_correlation": "  bias-corrected, squared",
    "mutual_information": "mutual information (nats), of 2 principal components each",
}


def command(
    run_dir: Path,
    client: int | None,
    knows: str,
    on: str,
    auxiliary: int,
    samples: int,
    decoder_steps: int,
    repeats: int,
    seed: int | None,
    out: Path | None,
    data_dir: Path | None,
) -> None:
    """Attack a run, show the measures and say where they are written."""
    model = trained.load(run_dir, data_dir)
    if model.config.channels == 1:
        raise UserError("run-config key channels = 1: `sglr attack` is for images that are read with three channels")
    settings = Settings(
        client=client,
        knows=knows,
        on=on,
        auxiliary=auxiliary,
        samples=samples,
        decoder_steps=decoder_steps,
        repeats=repeats,
        seed=model.config.seed if seed is None else seed,
    )
    if out is not None:
        check_folder(out.expanduser().absolute(), model, settings)
    console = Console()
    under_way = attacks(model, settings)
    shown = track(
        under_way, "attacking", total=repeats, console=console, transient=True, disable=not console.is_terminal
    )
    found = list(shown)
    console.print(table(model, settings, found))
    console.print(f"written: {save(model, settings, found, out)}", highlight=False, soft_wrap=True)


def table(model: Trained, settings: Settings, found: Sequence[Attack]) -> Table:
    """The attacks for the terminal."""
    who = ", ".join(str(attack.client) for attack in found)
    config = model.config
    title = f"attack on client {who} of {len(model.clients)} in round {model.server_round}: {config.method} "
    title += f"with {config.model} on {config.dataset}"
    caption = threat(settings, found[0], len(model.clients))
    if len(found) > 1:
        caption += f" Mean ± 95 % interval over {len(found)} attacks on this one training."
    shown = Table("measure", title=title, caption=caption)
    shown.add_column("value", justify="right")
    measures = figures(found)
    for name, words in _ROWS.items():
        shown.add_row(words, text(measures[name]))
    return shown
