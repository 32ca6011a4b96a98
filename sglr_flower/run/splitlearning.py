"""Split learning from Python: one's own modules, data sets and loss, in this process or a notebook."""

from __future__ import annotations

import copy
import statistics
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sglr_flower import imports
from sglr_flower.data.inputs import to_inputs
from sglr_flower.data.samples import Batch, Samples, Tensors, each, one
from sglr_flower.data.source import read_as, samples_of
from sglr_flower.data.targets import Classes, Kind, Several, to_targets
from sglr_flower.errors import UserError
from sglr_flower.models import work_out_of_place
from sglr_flower.run import trial
from sglr_flower.run.attempts import train_until_done
from sglr_flower.run.given import channels_last, check_counts, check_kind, check_state, clients_of, device_of, made
from sglr_flower.run.inprocess import LocalNodes
from sglr_flower.run.nodes import Weights
from sglr_flower.seeds import seed_torch
from sglr_flower.split import codecs, coding, defences, methods, optimizer_classes, score
from sglr_flower.split import loss as losses
from sglr_flower.split.codecs import OFF, Codec
from sglr_flower.split.cohort import Cohort
from sglr_flower.split.defences import Defence
from sglr_flower.split.loss import Loss
from sglr_flower.split.methods import Method
from sglr_flower.split.plan import of_method
from sglr_flower.split.rounds import EvaluateSession, LocalLink, evaluate_round
from sglr_flower.split.score import Scoring

MakeModule = Callable[[], nn.Module]
_ADAM = partial(torch.optim.Adam, lr=1e-3)


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
        Client -> the mean over the samples, of the score and of the loss that is trained with.
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
        (outputs, targets) -> a number for each sample, (n,); None: the target type's, which is whether the largest
        output is the class, the share of labels that are right, or the squared error.
    targets : Kind | None
        The target type (`sglr_flower.data.targets`); None: whole numbers are classes, other numbers values (of one
        value a sample, (n,), the loss gets (n, 1)), rows of booleans several labels.
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
        optimizer: Callable[..., torch.optim.Optimizer] = _ADAM,
        server_optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        score: Callable[[Tensor, Tensor], Tensor] | None = None,
        targets: Kind | None = None,
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
        self.method = methods.sglr() if method is None else method
        check_kind("method", self.method, Method)
        for name, codec in (("wire_up", wire_up), ("wire_down", wire_down)):
            check_kind(name, codec, Codec)
        if defence is not None:
            check_kind("defence", defence, Defence)
        check_counts(batch_size=(batch_size, 1), local_epochs=(local_epochs, 1), seed=(seed, 0))
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise UserError(f"dtype = {dtype!r}: it must be a floating point torch.dtype")
        self._device, self._dtype, self._seed = device_of(device), dtype, seed
        self._data, self._kind = clients_of(clients, self.method, targets)
        self._shared = shared or self.method.shares_segment
        self._lower, self._upper = lower, upper
        self._optimizer, rate = optimizer_classes.of(optimizer)
        self._server_optimizer = self._optimizer
        if server_optimizer is not None:
            self._server_optimizer, _ = optimizer_classes.of(server_optimizer, "server_optimizer")
        self._plan = of_method(
            self.method,
            alpha=0.5,
            phi=0.5,
            seed=seed,
            server_round=1,
            clients=tuple(self._data),
            local_epochs=local_epochs,
            batch_size=batch_size,
            reshuffle=True,
            client_lr=rate,
            average_over="clients",
            gradient_scale="own",
            loss=losses.of(loss),
            up=wire_up,
            down=wire_down,
            defence=defence,
        )
        self._scoring = self._made_scoring(score)
        client, server = self._segments(0)
        self._check(client, server)
        make = self.method.makes_server or methods.joint  # without a server segment it only scores
        self._server = make(server, self._server_optimizer, self._device)
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
        check_counts(count=(count, 1))
        for _ in range(count):
            yield self._train()

    def evaluate(self, data: Any) -> Evaluation:
        """Score every client's network on the same samples.

        Parameters
        ----------
        data : Any
            As one of ``clients``.
        """
        test = read_as(samples_of("data", data), self._kind)
        self._try("data", test, *self._segments(0))
        session = EvaluateSession(
            self._nodes.cohorts[0].segments,
            self._dtype,
            self._round,
            {"test": test},
            defence=self._plan.defence,
            codec=self._plan.up,
        )
        found = evaluate_round(self._server, LocalLink({0: session}), self._plan.up, self._scoring)
        return Evaluation(
            self._scoring.score.name,
            {client: own.test.mean_score for client, own in found.items()},
            {client: own.test.mean_loss for client, own in found.items()},
        )

    def network(self, client: int = 0) -> nn.Sequential:
        """A copy of a client's whole network, its segment ``lower`` and the server's ``upper``, in evaluation mode."""
        if client not in self._data:
            raise UserError(f"client = {client}: it must be one of 0 to {len(self._data) - 1}")
        own = self._nodes.cohorts[0].segment(client)
        if self.method.whole:
            assert isinstance(own, nn.Sequential)
            return copy.deepcopy(own).cpu().eval()
        stages: OrderedDict[str, nn.Module] = OrderedDict(lower=own)
        if self._plan.defence is not None and (stage := self._plan.defence.stage()):
            stages[stage[0]] = stage[1]
        if not self._plan.up.off:
            stages["wire"] = coding.Wire(self._plan.up)
        stages["upper"] = self._server.segment
        return nn.Sequential(copy.deepcopy(stages)).cpu().eval()

    def state_dict(self) -> dict[str, Tensor]:
        """All that the training goes on from, as tensors by name: keep it with ``torch.save``."""
        state = {"round": torch.tensor(self._round)}
        state |= {f"server/{name}": tensor.detach().clone() for name, tensor in self._server.state().items()}
        for client, own in self._nodes.cohorts[0].states().items():
            state |= {f"client-{client}/{name}": tensor.detach().clone() for name, tensor in own.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave, of a `SplitLearning` made alike.

        Raises
        ------
        UserError
            If it is of another one; nothing is changed then.
        """
        owners: dict[str, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            owner, slash, name = key.partition("/")
            if slash:
                owners.setdefault(owner, {})[name] = tensor
        done = int(state["round"]) if "round" in state else -1
        clients = [f"client-{client}" for client in self._data] if done else []
        servers = [] if self.method.whole else ["server"]
        if done < 0 or owners.keys() - {"server"} != set(clients) or not owners.keys() >= set(servers):
            raise UserError(f"state: it must be what state_dict gave, with round, and {len(self._data)} clients")
        segments = dict(zip(("lower", "upper"), self._segments(0), strict=True))
        for owner, own in owners.items():
            part = "upper" if owner == "server" else "lower"
            check_state(owner, own, segments[part], self._server_optimizer if part == "upper" else self._optimizer)
        if servers:
            self._server.load_state(owners["server"])
        states = {client: owners[f"client-{client}"] for client in self._data} if done else {}
        self._round, self._segment = done, None  # a shared segment is every client's
        self._nodes = LocalNodes({0: self._cohort(states)})

    def _train(self) -> Round:
        taking_part = replace(self._plan, server_round=self._round + 1)
        # Its random numbers are its own: the caller's go on as if nothing had been trained.
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            trained = train_until_done(self._server, taking_part, self._nodes, self._segment)
        self._segment = trained.shared
        if trained.shared is not None:  # so that what is looked at between rounds is what they share
            self._nodes.cohorts[0].load_shared(trained.shared, self._data.keys())
        self._round += 1
        result = trained.result
        return Round(self._round, result.loss, result.steps, result.samples, trained.sent.up, trained.sent.down)

    def _segments(self, client: int) -> tuple[nn.Module, nn.Module]:
        """A client's initial segment, and the server's as it is together with this one."""
        with torch.random.fork_rng(devices=[]):
            seed_torch(torch.device("cpu"), self._seed, "model", 0 if self._shared else client)
            lower, given = made(self._lower, "lower", "a client segment"), self._upper
            known = copy.deepcopy(given) if isinstance(given, nn.Module) else None
            upper = known or made(given, "upper", "the server segment")
        lower, upper = lower.to(self._dtype), upper.to(self._dtype)
        work_out_of_place(upper)
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

    def _made_scoring(self, own: Callable[[Tensor, Tensor], Tensor] | None) -> Scoring:
        """One's own score, or the target type's; the loss beside it is the one that is trained with."""
        if own is not None:
            return score.from_function(own, self._plan.loss)
        if isinstance(self._kind, Several):
            raise UserError("score: with several targets one of your own says what is good")
        return replace(score.of(self._kind, self._plan.loss), loss=self._plan.loss)

    def _check(self, lower: nn.Module, upper: nn.Module) -> None:
        """Try all on a batch of each client, so that what does not fit is said before anything is trained."""
        given = {id(weight) for weight in lower.parameters()}
        if len(self._data) > 1 and any(id(weight) in given for weight in self._segments(1)[0].parameters()):
            raise UserError("lower: it must make a new module each time it is called, and it gave the same one twice")
        own = self._upper if isinstance(self._upper, nn.Module) else upper  # of which ``upper`` is a copy
        trial.check_weights(trial.Parts(lower, own, "lower and upper", ("lower", "upper")))
        lower, upper = copy.deepcopy(lower), copy.deepcopy(upper)
        tried = [self._try(f"client {client}", data, lower, upper) for client, data in self._data.items()]
        read, smashed = tried[0]
        for name, codec in (("wire_up", self._plan.up), ("wire_down", self._plan.down)):
            if wrong := codecs.refusal(codec, tuple(smashed.shape[1:]), self._dtype):
                raise UserError(f"{name}: {wrong}")
        if self._plan.defence is not None and (wrong := defences.refusal(self._plan.defence, one(read), smashed)):
            raise UserError(f"defence: {wrong}")
        factories = (("optimizer", self._optimizer, lower), ("server_optimizer", self._server_optimizer, upper))
        for name, factory, segment in factories:
            if wrong := optimizer_classes.refusal(factory, segment.parameters()):
                raise UserError(f"{name}: {wrong}")
        self._check_training(trial.Parts(lower, upper, "lower and upper", ("lower", "upper")), read)

    def _check_training(self, parts: trial.Parts, read: Tensors) -> None:
        """Try it in training mode, and a step of the method; say what can be trained and may not be meant."""
        two = each(lambda own: torch.cat([own, own])[: trial.COUNT], read)  # of one sample two
        tried = trial.network(parts, two)
        sizes = {client: len(data) for client, data in self._data.items()}
        joint = self.method.server is methods.joint
        reasons = trial.batches_of_one([self._plan], sizes, joint)
        trial.check_on_one(parts, two, reasons)
        few = {
            client: data.take(torch.arange(min(trial.COUNT, len(data))))
            for client, data in list(self._data.items())[:2]
        }
        cohort = Cohort(few, lambda _: copy.deepcopy(parts.lower), self._optimizer, self._dtype, self._device)
        make = self.method.makes_server
        server = make(copy.deepcopy(parts.upper), self._server_optimizer, self._device) if make else None
        trial.step("method", replace(self._plan, clients=tuple(few), batch_size=trial.COUNT), cohort, server)
        said = trial.remarks(parts, tried.outputs, self._plan.loss)
        if self._scoring.of is score.squared_error and (hint := trial.of_numbers(self._kind, self._plan.loss)):
            said.append(hint)
        for sentence in said + trial.ones(parts, sizes, self._plan.batch_size, joint):
            warnings.warn(sentence, stacklevel=4)

    def _try(self, whose: str, data: Samples, lower: nn.Module, upper: nn.Module) -> tuple[Tensors, Tensor]:
        """Two samples through the network, the loss and the score; what the model read, and the smashed data."""
        batch = data.take(torch.arange(min(2, len(data))))
        inputs, targets = (each(lambda own: own.to(self._device), part) for part in (batch.inputs, batch.targets))
        read, wanted = to_inputs(inputs, self._dtype), to_targets(targets, self._dtype)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                smashed = lower.to(self._device).eval()(read)
                outputs = upper.to(self._device).eval()(smashed)
            except Exception as error:  # whatever the user's own modules do
                raise UserError(
                    f"lower and upper: a batch of {whose} fails with {imports.told(error)}{channels_last(inputs)}"
                ) from error
        for name, output in (("lower", smashed), ("upper", outputs)):
            if not isinstance(output, Tensor):
                raise UserError(f"{name}: it must give one tensor, not a {type(output).__name__}")
        if isinstance(self._kind, Classes) and isinstance(data, Batch) and outputs.ndim == 2 and outputs.shape[1] > 1:
            wrong = Classes(("",) * outputs.shape[1]).wrong(one(data.targets))
            if wrong:
                raise UserError(f"targets of {whose}: {wrong}")
        if wrong := losses.refusal(self._plan.loss, outputs, wanted):
            hint = trial.of_numbers(self._kind, self._plan.loss)
            raise UserError(f"loss: on a batch of {whose} {wrong}" + f" ({hint})" * bool(hint))
        try:
            self._scoring.values(outputs, wanted, [len(outputs)])
        except Exception as error:  # whatever the user's own score does
            raise UserError(f"score: a batch of {whose} fails with {imports.told(error)}") from error
        if isinstance(self._kind, Classes) and self._scoring.score == score.ACCURACY and outputs.shape[-1] < 2:
            raise UserError("score: classes are told apart by two outputs or more; give a score of your own")
        return read, smashed
