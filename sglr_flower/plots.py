"""Pictures of a run, from what is in its run directory."""

from __future__ import annotations

import csv
from pathlib import Path

from sglr_flower.rundir import read_json


def save_curves(run_dir: Path) -> Path:
    """Draw training loss and test accuracy per round into ``curves.png``.

    The band around the accuracy is one standard deviation over the clients.

    Returns
    -------
    Path
        The picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second; training does not need it
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with (run_dir / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    summary = read_json(run_dir / "summary.json")
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(1, 2)
    loss.plot([int(row["round"]) for row in rows], [float(row["train_loss"]) for row in rows], color="tab:red")
    loss.set(xlabel="round", ylabel="training loss", ylim=(0, None))
    tested = [row for row in rows if row["test_accuracy_mean"]]
    rounds = [int(row["round"]) for row in tested]
    mean = [100 * float(row["test_accuracy_mean"]) for row in tested]
    std = [100 * float(row["test_accuracy_std"]) for row in tested]
    accuracy.plot(rounds, mean, color="tab:blue", marker="o", markersize=3, label="mean over clients")
    low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
    accuracy.fill_between(rounds, low, high, color="tab:blue", alpha=0.2, linewidth=0, label="± one std over clients")
    accuracy.set(xlabel="round", ylabel="test accuracy (%)")
    accuracy.legend(loc="lower right", frameon=False)
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{summary['method']} with {summary['model']} on {summary['dataset']}, {summary['clients']} clients, "
        f"{100 * summary['test_accuracy_mean']:.2f} ± {100 * summary['test_accuracy_std']:.2f} %"
    )
    picture = run_dir / "curves.png"
    figure.savefig(picture, dpi=110)
    return picture
