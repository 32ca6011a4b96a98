"""MLflow: ``MLFLOW_TRACKING_URI`` and its other variables say where, else its own default in the working directory."""

from __future__ import annotations

import os
from collections.abc import Mapping

import mlflow

from sglr_flower.run.track.tracker import PROJECT, TrackedRun


class Tracker:
    """A run at MLflow; see `tracker.Tracker`."""

    def __init__(self, run: TrackedRun) -> None:
        if not mlflow.is_tracking_uri_set():
            # The default is below the working directory, which may be another one when the run is resumed.
            mlflow.set_tracking_uri(run.kept.setdefault("uri", mlflow.get_tracking_uri()))
        if "run_id" in run.kept:
            mlflow.start_run(run_id=run.kept["run_id"])
        else:
            if not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & os.environ.keys():
                mlflow.set_experiment(PROJECT)
            run.kept["run_id"] = mlflow.start_run(run_name=run.name).info.run_id
            mlflow.log_params(dict(run.config))
        self.where = f"run {run.kept['run_id']} in {mlflow.get_tracking_uri()}"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record a round."""
        mlflow.log_metrics(dict(metrics), step=step)

    def end(self, step: int, summary: Mapping[str, float] | None) -> None:
        """Finish the run."""
        if summary is not None:
            mlflow.log_metrics({f"summary/{name}": value for name, value in summary.items()}, step=step)
        mlflow.end_run("FAILED" if summary is None else "FINISHED")
