"""The ServerApp's work: a run from its run-config to its result."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from sglr_flower.data import datasets
from sglr_flower.errors import UserError
from sglr_flower.exchange.checks import frame_bytes
from sglr_flower.exchange.stream import StreamServer
from sglr_flower.federation.folder import stream_endpoint
from sglr_flower.flower.strategy import SplitStrategy, frame_of
from sglr_flower.run import assembly, checks
from sglr_flower.run.config import RunConfig
from sglr_flower.run.rundir import RunDirectory, new_run_dir
from sglr_flower.split import methods
from sglr_flower.split.rounds import EVALUATION_SAMPLES

# Below Flower's logger, so that a run's messages go where Flower's go.
log = logging.getLogger("flwr.sglr")


def _open_port(config: RunConfig) -> StreamServer | None:
    """The streams' port; None where none can be had and the grid exchange will do."""
    if config.exchange == "grid" or methods.get(config.method).whole:
        return None
    # A cohort is not larger than all clients together, nor is a chunk of an evaluation.
    samples = max(config.batch_size * config.num_clients, EVALUATION_SAMPLES, config.num_clients)
    try:
        limit = frame_bytes(samples, *frame_of(config), assembly.wire_codecs(config)[0])
        return StreamServer(stream_endpoint(), limit)
    except UserError as error:
        if config.exchange == "stream":
            raise
        log.warning("exchange auto: no port for streams (%s), so the grid exchange is used", error)
        return None


def serve(grid: Grid, values: Mapping[str, Any]) -> None:
    """Run the ServerApp: a run from its run-config to its result, with a status that tells how it ended.

    Raises
    ------
    Exception
        Whatever ends the run early, so that Flower records it as failed; ``status.json`` holds it as a sentence.
    """
    config = RunConfig.parse(values)
    for key, path in (("run-dir", config.run_dir), ("data-dir", config.data_dir)):
        if path and not Path(path).is_absolute():
            raise UserError(f"run-config key {key} = {path!r}: it must be absolute, as Flower runs the app elsewhere")
    if not config.run_dir:
        config = config.replace(run_dir=str(new_run_dir(None, config)))
    checks.check_parts(config)
    directory = RunDirectory(Path(config.run_dir))
    with directory.session(config):
        data = assembly.data_of(config)
        if config.evaluate == "server":
            datasets.ensure_present(config.dataset, config.data_dir, data[-1])  # once here, before all nodes would
            assembly.splits(config)  # read now, while the nodes are being started, and kept
        if assembly.has_data(config):
            assembly.pin_data(config)
            for note in datasets.notes(*data):
                log.info("%s", note)
        with ExitStack() as stack:
            streams = _open_port(config)
            if streams is not None:
                stack.callback(streams.stop)
            summary = SplitStrategy(grid, config, directory, streams).start()
        totals = summary.totals
        if not totals.scored:
            log.info("no client has test samples, so there is no test %s", totals.score.words)
            return
        log.info(
            "test %s %s over the clients, each at its best validation round",
            totals.score.words,
            totals.score.text(totals.test_score_mean, totals.test_score_std),
        )
