"""Split learning from Python: one's own modules, data sets and loss, in this process or a notebook."""

from __future__ import annotations

import copy
import statistics
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sglr_flower.data import samples
from sglr_flower.data.samples import Samples
from sglr_flower.errors import UserError
from sglr_flower.run.attempts import train_until_done
from sglr_flower.run.inprocess import LocalNodes
from sglr_flower.run.nodes import Weights
from sglr_flower.seeds import seed_torch
from sglr_flower.split import loss as losses
from sglr_flower.split import methods, optimizer_classes, plan, score
from sglr_flower.split.codecs import OFF, Codec
from sglr_flower.split.cohort import Cohort
from sglr_flower.split.defences import Defence
from sglr_flower.split.loss import Loss
from sglr_flower.split.methods import Method
from sglr_flower.split.rounds import EvaluateSession, LocalLink, evaluate_round
from sglr_flower.split.score import Scoring

MakeModule = Callable[[], nn.Module]


@dataclass(frozen=True)
class Round:
    """What a round of `SplitLearning.rounds` did.

    Attributes
    ----------
    number : int
        Which round of the training it was, from 1.
    loss : float
        Mean training loss per sample.
    steps, samples : int
        The server's steps, and the samples of all clients in them.
    bytes_up, bytes_down : int
        What would have travelled between clients and server: smashed data and targets up, cut gradients down, and
        segments where the method averages or hands them on.
    """

    number: int
    loss: float
    steps: int
    samples: int
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class Evaluation:
    """How good the clients' networks are.

    Attributes
    ----------
    name : str
        Of the score: ``accuracy`` (a fraction in [0, 1]), ``mse``, or one's own function's.
    scores, losses : dict[int, float]
        Client -> the mean over the samples.
    """

    name: str
    scores: dict[int, float]
    losses: dict[int, float]

    @property
    def score(self) -> float:
        """The mean over the clients."""
        return statistics.fmean(self.scores.values())

    @property
    def loss(self) -> float:
        """The mean over the clients."""
        return statistics.fmean(self.losses.values())


class SplitLearning:
    """Clients with data and a client segment each, and a server with the server segment, in this process.

    What it trains are the weights that a run over Flower trains with the same settings and seed.

    Parameters
    ----------
    lower : Callable[[], nn.Module]
        Makes a client segment; called once for each client, with torch's random numbers seeded for it. From a batch of
        inputs to smashed data (n, *cut shape).
    upper : nn.Module | Callable[[], nn.Module]
        The server segment, from smashed data to outputs; or what makes it, called after ``lower`` for client 0 with
        the same random numbers, so that both together are one initialisation of the whole network.
    clients : Sequence[Any]
        For each client its training samples: anything indexable of (inputs, target) such as a torch data set, or a pair
        of tensors or arrays (inputs, targets). Inputs are a tensor or a dict of tensors.
    method : Method
        How they train, as ``sglr_flower.methods.sglr(alpha=0.5, phi=0.5)``.
    loss : Callable[[Tensor, Tensor], Tensor]
        (outputs, targets) -> a scalar, the mean over the samples.
    optimizer : Callable[..., torch.optim.Optimizer]
        A class of `torch.optim`, or that with its arguments as ``partial(torch.optim.AdamW, lr=1e-3)``: called with a
        segment's parameters. Its learning rate is eta_0, from which the method makes the server's.
    server_optimizer : Callable[..., torch.optim.Optimizer] | None
        The server segment's; None: as the clients'. Its rate is not used.
    score : Callable[[Tensor, Tensor], Tensor] | None
        (outputs, targets) -> a number for each sample, (n,); None: whether the largest output is the class (targets
        that are whole numbers), or the squared error.
    batch_size : int
        Samples of one client in one step.
    local_epochs : int
        Passes over a client's data in one round.
    seed : int
        Every random draw follows from it.
    shared : bool
        Whether all clients start from the same weights; always so where the method averages or hands on segments.
    wire_up, wire_down : Codec
        How smashed data and cut gradients travel.
    defence : Defence | None
        What clients do to their smashed data.
    device : torch.device | str | None
        Where all compute; None: the first GPU if there is one.
    dtype : torch.dtype
        Of weights and of inputs that are floating point.

    Raises
    ------
    UserError
        If something does not fit, in one sentence.

    Examples
    --------
    >>> import torch
    >>> from functools import partial
    >>> from torch import nn
    >>> import sglr_flower as sglr
    >>> draw = torch.Generator().manual_seed(0)
    >>> x = torch.randn(90, 4, generator=draw)
    >>> y = (x.sum(1) > 0).long()
    >>> run = sglr.SplitLearning(
    ...     lower=lambda: nn.Sequential(nn.Linear(4, 16), nn.ReLU()),
    ...     upper=lambda: nn.Linear(16, 2),
    ...     clients=[(x[k:60:3], y[k:60:3]) for k in range(3)],
    ...     method=sglr.methods.sglr(alpha=0.5, phi=0.5),
    ...     optimizer=partial(torch.optim.Adam, lr=1e-2),
    ... )
    >>> for done in run.rounds(20):
    ...     pass
    >>> done.number, done.steps, round(run.evaluate((x[60:], y[60:])).score, 1)
    (20, 3, 1.0)
    >>> run.network(client=1)(x[:2]).shape
    torch.Size([2, 2])

    References
    ----------
    Pal et al., arXiv 2112.05929, Algorithm 1.
    """

    def __init__(
        self,
        lower: MakeModule,
        upper: nn.Module | MakeModule,
        clients: Sequence[Any],
        *,
        method: Method | None = None,
        loss: Loss = F.cross_entropy,
        optimizer: Callable[..., torch.optim.Optimizer] = partial(torch.optim.Adam, lr=1e-3),
        server_optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        score: Callable[[Tensor, Tensor], Tensor] | None = None,
        batch_size: int = 8,
        local_epochs: int = 1,
        seed: int = 0,
        shared: bool = False,
        wire_up: Codec = OFF,
        wire_down: Codec = OFF,
        defence: Defence | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.method = method or methods.sglr()
        self._data = _clients(clients, self.method)
        _whole_numbers(batch_size=batch_size, local_epochs=local_epochs)
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._dtype, self._seed = dtype, seed
        self._shared = shared or self.method.shares_segment
        self._lower, self._upper = lower, upper
        self._optimizer, rate = optimizer_classes.of(optimizer, "optimizer")
        servers, _ = (self._optimizer, 0) if server_optimizer is None else optimizer_classes.of(server_optimizer)
        up, down, private = wire_up, wire_down, defence
        self._plan = plan.of_method(
            self.method,
            seed=seed,
            clients=tuple(self._data),
            local_epochs=local_epochs,
            batch_size=batch_size,
            client_lr=rate,
            loss=loss,
            up=up,
            down=down,
            defence=private,
        )
        self._score = score
        client, server = self._segments(0)
        self._check(client, server)
        self._server = self.method.make_server(server, servers, self._device)
        self._nodes = LocalNodes({0: self._cohort()})
        self._round = 0
        self._segment: Weights | None = None

    @property
    def round(self) -> int:
        """Rounds that are done."""
        return self._round

    def rounds(self, count: int) -> Iterator[Round]:
        """Train so many further rounds, one for each that is asked for.

        Parameters
        ----------
        count : int
            At least 1. Nothing is trained before the first one is asked for.
        """
        _whole_numbers(count=count)
        for _ in range(count):
            yield self._train()

    def evaluate(self, data: Any) -> Evaluation:
        """Score every client's network on the same samples.

        Parameters
        ----------
        data : Any
            As one of ``clients``.
        """
        test = _samples(data, "data")
        scoring = self._scoring(test)
        session = EvaluateSession(
            self._nodes.cohorts[0].segments,
            self._dtype,
            self._round,
            {"test": test},
            defence=self._plan.defence,
            codec=self._plan.up,
        )
        found = {
            client: done.test for client, done in evaluate_round(self._server, LocalLink({0: session}), scoring).items()
        }
        return Evaluation(
            scoring.score.name,
            {client: tally.mean_score for client, tally in found.items()},
            {client: tally.mean_loss for client, tally in found.items()},
        )

    def network(self, client: int = 0) -> nn.Sequential:
        """A copy of a client's whole network, its segment ``lower`` and the server's ``upper``, in evaluation mode."""
        if client not in self._data:
            raise UserError(f"client = {client}: it must be one of 0 to {len(self._data) - 1}")
        own = self._nodes.cohorts[0].segments[client]
        stages = {"lower": own} if self.method.whole else {"lower": own, "upper": self._server.segment}
        return nn.Sequential(OrderedDict(copy.deepcopy(stages))).eval()

    def state_dict(self) -> dict[str, Tensor]:
        """All that the training goes on from, as tensors by name: keep it with ``torch.save``."""
        state = {"round": torch.tensor(self._round)}
        state |= {f"server/{name}": tensor.detach().clone() for name, tensor in self._server.state().items()}
        for client, own in self._nodes.cohorts[0].states().items():
            state |= {f"client-{client}/{name}": tensor.detach().clone() for name, tensor in own.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave, of a `SplitLearning` made alike."""
        owners: dict[str, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            owner, slash, name = key.partition("/")
            if slash:
                owners.setdefault(owner, {})[name] = tensor
        if "round" not in state or "server" not in owners:
            raise UserError("state: it must be what state_dict gave, with round and server")
        self._server.load_state(owners.pop("server"))
        states = {int(owner.removeprefix("client-")): own for owner, own in owners.items()}
        self._round = int(state["round"])
        self._nodes = LocalNodes({0: self._cohort(states)})

    def _train(self) -> Round:
        taking_part = replace(self._plan, server_round=self._round + 1)
        trained = train_until_done(self._server, taking_part, self._nodes, self._segment)
        self._segment = trained.shared
        if trained.shared is not None:  # so that what is looked at between rounds is what they share
            self._nodes.cohorts[0].load_shared(trained.shared, self._data.keys())
        self._round += 1
        result = trained.result
        return Round(self._round, result.loss, result.steps, result.samples, trained.sent.up, trained.sent.down)

    def _segments(self, client: int) -> tuple[nn.Module, nn.Module]:
        """A client's initial segment, and the server's if ``client`` is 0."""
        with torch.random.fork_rng(devices=[]):
            seed_torch(torch.device("cpu"), self._seed, "model", 0 if self._shared else client)
            lower = _module(self._lower(), "lower", self._dtype)
            if isinstance(self._upper, nn.Module):
                upper = copy.deepcopy(self._upper)
            else:
                upper = self._upper()
        upper = _module(upper, "upper", self._dtype)
        if not self.method.whole:
            return lower, upper
        return nn.Sequential(OrderedDict(lower=lower, upper=upper)), nn.Sequential()

    def _cohort(self, states: Mapping[int, Mapping[str, Tensor]] | None = None) -> Cohort:
        return Cohort(
            self._data,
            lambda client: self._segments(client)[0],
            self._optimizer,
            self._dtype,
            self._device,
            states=states,
            stacked=self._device.type == "cuda",
        )

    def _scoring(self, data: Samples) -> Scoring:
        whole_numbers = not samples.one(data.take(torch.zeros(1, dtype=torch.int64)).targets).is_floating_point()
        loss = score.cross_entropy if whole_numbers and self._score is None else self._plan.loss
        if self._score is not None:
            return score.from_function(self._score, loss)
        return score.CLASSES(loss) if whole_numbers else score.VALUES(loss)

    def _check(self, lower: nn.Module, upper: nn.Module) -> None:
        """Try the network and the loss on a batch, so that what does not fit is said before anything is trained."""
        batch = next(iter(self._data.values())).take(torch.arange(min(2, len(next(iter(self._data.values()))))))
        inputs, targets = samples.computed(batch, self._dtype)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                smashed = copy.deepcopy(lower).eval()(inputs)
                outputs = copy.deepcopy(upper).eval()(smashed)
            except Exception as error:  # whatever the user's own modules do
                raise UserError(f"lower and upper: a batch of client 0 fails with: {error}") from error
        if not isinstance(smashed, Tensor):
            raise UserError(f"lower: it must give one tensor, not a {type(smashed).__name__}")
        if wrong := losses.refusal(self._plan.loss, outputs, targets):
            raise UserError(f"loss: {wrong}")
