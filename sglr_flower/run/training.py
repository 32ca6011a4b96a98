"""The run: rounds of training, evaluation and checkpoints, over whatever reaches the nodes.

The Flower strategy and the in-process driver both end in `train`; they differ in the `nodes.Nodes` they hand it.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from sglr_flower.data.samples import Samples
from sglr_flower.errors import Diverged, UserError
from sglr_flower.run import assembly, checkpoint, checks, origin, scoring, track, watch
from sglr_flower.run.accounting import Ledger
from sglr_flower.run.attempts import train_until_done, with_retries
from sglr_flower.run.checkpoint import LazyStates
from sglr_flower.run.config import RunConfig
from sglr_flower.run.metrics import History, RoundMetrics, byte_columns, evaluation_columns
from sglr_flower.run.nodes import Nodes, Weights
from sglr_flower.run.nodetable import departures
from sglr_flower.run.rundir import RunDirectory
from sglr_flower.run.summary import Spent, Summary
from sglr_flower.run.watch import Watch
from sglr_flower.split import loss as losses
from sglr_flower.split import methods
from sglr_flower.split.plan import RoundPlan
from sglr_flower.split.rounds import Score
from sglr_flower.split.server import ServerSegment

# Below Flower's logger, so that a run's messages go where Flower's go.
log = logging.getLogger("flwr.sglr")

States = Mapping[int, dict[str, Tensor]]


def train(
    config: RunConfig, nodes: Nodes, directory: RunDirectory, restored: checkpoint.Checkpoint | None = None
) -> Summary:
    """Train all rounds that are left and record them in the run directory.

    Parameters
    ----------
    config : RunConfig
        The run.
    nodes : Nodes
        Started, their clients in the state of ``restored``.
    directory : RunDirectory
        In a session of this process.
    restored : Checkpoint | None
        Where server and history continue from; None: a run from its beginning.

    Returns
    -------
    Summary
        What it came to.
    """
    with track.observers(config, directory) as observers:
        training = Training.begin(config, nodes, directory, restored)
        observers.begin(training.history.rows)
        training.warn(training.watch.sentences)
        for done in training.rounds():
            found = training.watch.look(done.row)
            stop = config.stop_if_diverged and training.watch.diverged in found
            if done.saved is not None and not stop:
                training.save(done.saved)
            directory.record(done.row)
            observers.round(done.row)
            directory.status(**_round_status(done.row))
            log.info(_round_line(done.row, config.num_server_rounds))
            training.warn(found)
            if stop:
                raise Diverged(f"{training.watch.diverged}; the run ends (stop-if-diverged)")
        summary = training.summary()
        directory.finish(summary)
        observers.end(summary)
        return summary


@dataclass(frozen=True)
class Saved:
    """What a checkpoint has of the clients.

    Attributes
    ----------
    states : Mapping[int, dict[str, Tensor]]
        Client -> its state; empty where nodes keep them.
    carried : dict[int, int]
        Client -> the round that its state is from, of clients that could not be asked this time.
    """

    states: States
    carried: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """A round that is done.

    Attributes
    ----------
    row : RoundMetrics
        What it measured.
    scores : dict[int, Score]
        Client -> its score; empty without an evaluation.
    saved : Saved | None
        What is to be kept of the clients; None: nothing.
    """

    row: RoundMetrics
    scores: dict[int, Score]
    saved: Saved | None


@dataclass
class Training:
    """A run between two of its rounds.

    Attributes
    ----------
    config : RunConfig
        The run.
    nodes : Nodes
        Its clients.
    directory : RunDirectory
        Where it is written.
    server : ServerSegment
        The server's side.
    images : Mapping[str, Samples]
        What the server scores clients on; empty where they are scored over the nodes.
    history : History
        What it has measured so far.
    shared : Weights | None
        The segment that all clients have, where the method averages or hands on segments.
    ledger : Ledger | None
        What has been spent of differential privacy; None: there is none.
    watch : Watch
        What is said of it while it goes wrong.
    """

    config: RunConfig
    nodes: Nodes
    directory: RunDirectory
    server: ServerSegment
    images: Mapping[str, Samples]
    watch: Watch
    history: History = field(default_factory=History)
    shared: Weights | None = None
    ledger: Ledger | None = None

    @classmethod
    def begin(
        cls, config: RunConfig, nodes: Nodes, directory: RunDirectory, restored: checkpoint.Checkpoint | None
    ) -> Training:
        """Set up the server's side, in the state of ``restored`` if there is one, and what the directory holds."""
        checks.check_batches_of_one(config, nodes.sizes)
        server = assembly.server(config)
        history, shared = History(score=assembly.scoring(config).score), None
        if restored is not None:
            server.load_state(restored.server_state())
            history, shared = History.from_json(restored.history), restored.shared_weights()
        directory.begin(history)
        directory.record_origin(asdict(origin.here(server.device)))
        ledger = Ledger.open(config, directory.path, len(history.rows))
        if ledger is not None and not ledger.claims:
            log.warning("noise-seed = %d: the noise can be drawn again, so no epsilon is stated", config.noise_seed)
        # With client-side evaluation the server needs no data of its own.
        images = assembly.evaluation_images(config) if config.evaluate == "server" else {}
        if images and config.partition != "own":
            directory.partition(*assembly.class_counts(config))
        watching = watch.begin(
            config.num_server_rounds,
            assembly.targets(config),
            losses.get(config.loss),
            history.score,
            images.get("test"),
            history.rows,
        )
        watching.say(checks.remarks(config, nodes.sizes))
        return cls(config, nodes, directory, server, images, watching, history, shared, ledger)

    def rounds(self) -> Iterator[Done]:
        """Train the rounds that are left, one for each that is asked for; each is in `history` when it is given.

        Raises
        ------
        UserError
            If the privacy budget ends the run before there is anything to end with.
        TooFewClients
            If too few clients are left.
        """
        while len(self.history.rows) < self.config.num_server_rounds:
            plan = assembly.plan(self.config, len(self.history.rows) + 1)
            if self.ledger is not None and not self.ledger.affords(plan, self.nodes.sizes):
                self._refuse_unscored(self.ledger, plan)
                return
            done = self._round(plan)
            self.history.add(done.row, done.scores)
            yield done

    def _round(self, plan: RoundPlan) -> Done:
        """Train a round, and at its end collect and evaluate what is due."""
        config, nodes, number = self.config, self.nodes, plan.server_round
        started = time.perf_counter()
        trained = train_until_done(
            self.server,
            plan,
            nodes,
            self.shared,
            retries=config.round_retries,
            on_attempt=self._charge,
            on_step=functools.partial(self._show, number),
        )
        self.shared = trained.shared
        last = number == config.num_server_rounds or self._spent(number)
        due = last or (config.evaluate_every > 0 and number % config.evaluate_every == 0)
        save = last or number % config.checkpoint_every == 0
        states = self._collected(number, save=save, due=due)
        scores: dict[int, Score] = {}
        evaluation_bytes = 0
        if due:
            score = functools.partial(
                scoring.scores, config, self.server, nodes, self.images, number, states, self.shared
            )
            scores, evaluation_bytes = with_retries(score, config.round_retries)
        saved = self._saved(states) if save else None
        row = RoundMetrics(
            round=number,
            steps=trained.result.steps,
            clients=len(plan.clients) - trained.attended.dropped_clients,
            train_loss=trained.result.loss,
            client_lr=plan.client_rate(),
            server_lr=plan.step_lr,
            **evaluation_columns(scores),
            evaluated_images=max((score.test.samples for score in scores.values()), default=0),
            seconds=time.perf_counter() - started,
            step_seconds_median=trained.result.step_seconds_median,
            **byte_columns(trained.sent),
            evaluation_bytes=evaluation_bytes,
            nodes=trained.attended.nodes,
            dropped_clients=trained.attended.dropped_clients,
            attempts=trained.attempts,
            epsilon=None if self.ledger is None else self.ledger.epsilon,
            score=self.history.score,
        )
        return Done(row, scores, saved)

    def _collected(self, server_round: int, *, save: bool, due: bool) -> States:
        """The clients' states, where a checkpoint or the server's own evaluation needs them."""
        states: States = {}
        if save or (due and self.config.evaluate == "server" and self.shared is None):
            collect = functools.partial(self.nodes.collect, server_round, checkpoint=save)
            states = with_retries(collect, self.config.round_retries)
        if self.shared is None:
            return states
        # What a node holds until the next round is what its clients trained, not yet what they share.
        segment = {f"segment.{name}": tensor for name, tensor in self.shared.items()}
        return LazyStates(states, lambda client: {**states[client], **segment})

    def _saved(self, states: States) -> Saved:
        """What a checkpoint keeps: of clients that are away, what the checkpoint before it has."""
        absent = self.nodes.absent
        if self.config.evaluate == "server" and absent and (earlier := self.directory.latest_checkpoint()):
            missing = earlier.client_states(absent - states.keys())
            joined = LazyStates([*states, *missing], lambda own: states[own] if own in states else missing[own])
            return Saved(joined, earlier.state_versions(missing))
        return Saved(states)

    def save(self, saved: Saved) -> None:
        """Write a checkpoint of the run as it is now."""
        done = len(self.history.rows)
        checkpoint.save(
            self.directory.checkpoints,
            done,
            self.server.state(),
            saved.states,
            self.history.to_json(),
            self.shared,
            self.nodes.versions(done),
            saved.carried,
            self.config.checkpoints_kept,
        )

    def summary(self) -> Summary:
        """What the run came to."""
        from sglr_flower.run import client_cost  # its counter's import is not the training's to wait for

        config, nodes = self.config, self.directory.nodes()
        return Summary(
            method=config.method,
            model=config.model,
            dataset=config.dataset,
            clients=len(assembly.clients(config)),
            one_network=methods.get(config.method).one_network,
            nodes=self.nodes.count,
            exchange=self.nodes.exchange,
            totals=self.history.totals(),
            left=departures(nodes),
            client=client_cost.bore(config, len(self.history.rows), self.nodes.sizes, nodes),
            seed=config.seed,
            spent=self._privacy(),
            warnings=tuple(self.watch.sentences),
        )

    # ---- what differential privacy has spent

    def _spent(self, server_round: int) -> bool:
        """Whether the privacy budget allows no round after this one, all of whose attempts are counted."""
        if self.ledger is None:
            return False
        return not self.ledger.affords(assembly.plan(self.config, server_round + 1), self.nodes.sizes)

    def _charge(self, plan: RoundPlan) -> None:
        """Count an attempt of a round before anything is sent: what a round that fails has sent is known to clients."""
        if self.ledger is None:
            return
        if not self.ledger.affords(plan, self.nodes.sizes):
            again = f"round {plan.server_round} another time"
            raise UserError(f"run-config key dp-epsilon-budget = {self.ledger.budget:g}: it does not allow {again}")
        self.ledger.charge(plan, self.nodes.sizes)

    def _refuse_unscored(self, ledger: Ledger, plan: RoundPlan) -> None:
        """Refuse to end a run before a round where there is nothing yet to end with."""
        if self.history.last_evaluated() is None:
            raise UserError(
                f"run-config key dp-epsilon-budget = {ledger.budget:g}: round {plan.server_round} would bring epsilon "
                f"to {ledger.cost(plan, self.nodes.sizes):.4g}, and no round before it is there with an evaluation"
            )

    def _privacy(self) -> Spent | None:
        if self.ledger is None:
            return None
        ended = len(self.history.rows) < self.config.num_server_rounds
        return Spent(self.ledger.epsilon, self.ledger.delta, ended)

    # ---- what a person sees

    def warn(self, sentences: Sequence[str]) -> None:
        """Say sentences, of all those that have been said of the run, in its log and its status."""
        for sentence in sentences:
            log.warning(sentence)
        if sentences:
            self.directory.status(warnings=self.watch.sentences)

    def _show(self, server_round: int, done: int, steps: int, loss: float) -> None:
        """How far the round is, in ``status.json``."""
        if math.isnan(loss) and not done:
            self.directory.status(state="training", round=server_round, step=0, steps=steps)
        else:
            self.directory.status(force=False, step=done, loss=loss)


def _round_status(row: RoundMetrics) -> dict[str, Any]:
    status: dict[str, Any] = {
        "rounds_done": row.round,
        "train_loss": row.train_loss,
        "round_seconds": row.seconds,
    }
    if row.test_score_mean is not None:
        status |= {row.score.name: row.test_score_mean, "evaluated_round": row.round}
    return status


def _round_line(row: RoundMetrics, rounds: int) -> str:
    line = f"round {row.round}/{rounds}: loss {row.train_loss:.4f}, {row.steps} steps in {row.seconds:.1f} s"
    if row.test_score_mean is not None:
        line += f", test {row.score.words} {row.score.text(row.test_score_mean, row.test_score_std)}"
    return line
