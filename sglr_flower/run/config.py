"""The run-config: every key once, typed, with its unit, range and default.

The same object is built from a TOML file and ``-s key=value`` pairs (`sglr_flower.run.settings`), from Flower's
``context.run_config`` and from Python; ``RunConfig.parse`` is the only way in, and whatever is wrong ends as one
`UserError` sentence.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from sglr_flower import imports
from sglr_flower.choices import LOSSES, MODELS, OPTIMIZERS
from sglr_flower.data import levels
from sglr_flower.errors import UserError
from sglr_flower.split import codecs, methods, splitavg, splitlr
from sglr_flower.split.methods import Method

Scalar = str | int | float | bool

TRACKERS = ("mlflow", "wandb", "trackio")
"""What the key ``track`` can name: each is a module of `sglr_flower.run.track` and an extra of the package."""


OWN = (
    *("task", "method", "model", "dataset", "loss", "score", "optimizer", "server-optimizer"),
    *("wire-up", "wire-down", "defence", "track"),
)
"""Keys whose value may be the import path of one's own object."""


_TASK_PARTS = {"model": "model", "dataset": "data", "loss": "loss", "score": "score"}
"""Key -> the attribute of a `Task` that takes its place."""


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _listed(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",")) if text else ()


def _class_names(text: str) -> tuple[str, ...]:
    rows = list(csv.reader([text], skipinitialspace=True))
    return tuple(unicodedata.normalize("NFC", name.rstrip()) for name in rows[0]) if text and rows else ()


def listed_classes(names: Sequence[str]) -> str:
    """Class names as the key ``classes`` has them."""
    text = io.StringIO()
    spaced = any(name[:1].isspace() for name in names)
    csv.writer(text, lineterminator="", quoting=csv.QUOTE_ALL if spaced else csv.QUOTE_MINIMAL).writerow(names)
    return text.getvalue()


class RunConfig(BaseModel):
    """One run's settings, immutable; field names are the kebab-case keys with underscores."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, alias_generator=_kebab, validate_default=True
    )

    method: str = Field(
        "sglr",
        description="who updates what and when: sglr, slr (SplitLr only), sgl (SplitAvg only), psl (neither), sfl, "
        "sfl-v1, sfl-v2, ssl, fedavg, centralized, or one's own as package.module:name",
    )
    task: str = Field(
        "",
        description="a sglr_flower.Task of one's own as package.module:name, in place of model, cut, dataset, loss and "
        "score; empty: these keys",
    )
    model: str = Field(
        "resnet16",
        description="network to cut: resnet16, alexnet, resnet18, vit, mlp (for tables), or one's own as "
        "package.module:function",
    )
    cut: str = Field(
        "",
        description="last stage of the client segment, by name or by number of stages; empty: the model's own default",
    )
    dataset: str = Field(
        "digits",
        description="fashion-mnist, mnist, cifar-10, cifar-100, svhn, stl-10, digits (bundled, no download), folder: "
        "one's own images in data-dir/train/CLASS/, the tables breast-cancer, wine or diabetes (bundled; for mlp), "
        "hf:NAME or hf:/folder (images of the Hugging Face hub), or one's own as package.module:function",
    )
    data_dir: str = Field(
        "",
        description="absolute folder with the data set in torchvision's layout; empty: "
        "SGLR_DATA_DIR, else a cache in the user's data folder, downloaded",
    )
    classes: str = Field(
        "",
        description="of dataset folder: the names of its classes with commas, a name that has one in double quotes; "
        "its folder may then have any part of them; empty: those of the folders in data-dir/train",
    )
    channels: Literal[0, 1, 3] = Field(
        0,
        description="of an image as the model reads it: 3, grey ones repeated; 1, grey, for a model of one's own that "
        "is made for it; 0: as 3",
    )
    levels: str = Field(
        "auto",
        description="of image files with more than 8 bits: the range of values from black to white, as a number of "
        "bits or LOW:HIGH; auto: what the train images use",
    )
    ground: str = Field(
        "white",
        description="the colour that is seen where an image file is transparent, by name or as #rrggbb; none: whatever "
        "colour the file has there",
    )
    unreadable: Literal["refuse", "skip"] = Field(
        "refuse", description="image files that cannot be read: refuse, before training, or skip them"
    )
    cache: int = Field(
        500,
        ge=0,
        description="megabytes of a folder's images that are kept on disk at the size that is trained on while the run "
        "lasts, so that no round decodes them anew; 0: none",
    )
    image_size: int = Field(
        0, ge=0, le=512, description="height and width that images are resized to; 0: the data set's own default"
    )
    augment: Literal["none", "standard"] = Field(
        "none",
        description="of training images: none, or standard (random crop after padding, and flip where classes allow)",
    )
    partition: str = Field(
        "balanced",
        description="how train samples are dealt to clients: balanced (i.i.d., equal classes), iid, dirichlet:ALPHA, "
        "pathological:K, shards:K, linear, square; by:LEVEL or by:COLUMN: a client for each folder of a level below "
        "the class folders, or for each value of a column; own: each device has samples of its own",
    )
    num_clients: int = Field(8, ge=1, le=100_000, description="clients in the whole run, spread over the nodes")
    samples_per_client: int = Field(120, ge=0, description="train samples of one client; 0: all there are, divided")
    batch_size: int = Field(8, ge=1, le=65_536, description="samples of one client in one step")
    num_server_rounds: int = Field(40, ge=1, description="rounds to train")
    local_epochs: int = Field(1, ge=1, description="passes over a client's data in one round")
    fraction_train: float = Field(
        1.0,
        gt=0,
        le=1,
        description="fraction of the clients that take part in a round, drawn anew each round; at least one",
    )
    optimizer: str = Field(
        "adam",
        description="of both sides: adam or adamw (beta 0.9/0.999), sgd, or package.module:name of another of "
        "torch's classes (torch.optim:RMSprop) or one's own: a class, function or functools.partial that is called "
        "with the parameters",
    )
    server_optimizer: str = Field("", description="of the server alone, as optimizer; empty: as optimizer")
    momentum: float = Field(0.0, ge=0, lt=1, description="of sgd, on whichever side it is; 0: none")
    weight_decay: float = Field(
        -1.0,
        ge=-1,
        description="of adam, adamw and sgd, as torch's classes of these names have it, on both sides; -1: their "
        "default, 0.01 of adamw and 0 of the others; one's own has it in its own arguments",
    )
    client_lr: float = Field(1e-3, gt=0, description="eta_0, the clients' learning rate")
    splitlr_alpha: float = Field(
        0.5, ge=0, le=2, description="SplitLr (sglr, slr): the server's rate is eta_0 * C^alpha; 0: off"
    )
    lr_schedule: str = Field(
        "constant",
        description="factor on the learning rates: constant, cosine, step (x0.1 once 80 % of the rounds are done), or "
        "with every step cyclic:low=L,high=H,period=P,phase=F (P in rounds, F in [0, 1) of it, 0 if left out) or "
        "one-cycle:low=L,high=H,length=N,start=S (N and S in fractions of the rounds, 0.9 and 0 if left out)",
    )
    server_lr_schedule: str = Field(
        "", description="the same for the server's rate alone, lr-schedule is then the clients'; empty: lr-schedule"
    )
    splitavg_phi: float = Field(
        0.5,
        ge=0,
        le=1,
        description="SplitAvg (sglr, sgl): fraction of a step's clients (rounded to whole ones) whose cut gradients "
        "are averaged; 0: off",
    )
    splitavg_phase: str = Field(
        "all",
        description="rounds in which SplitAvg acts: all, first:F or last:F, F a fraction of the rounds in (0, 1]",
    )
    splitavg_over: Literal["clients", "clients-and-samples"] = Field(
        "clients", description="what is averaged: active clients position by position, or clients and samples"
    )
    cut_gradient_scale: Literal["own", "joint"] = Field(
        "own",
        description="a client's cut gradient is of its own batch mean (eq. 5), or of the joint batch's mean: with sgd "
        "a factor of the clients' number, with adam next to nothing, as its steps do not depend on a gradient's scale",
    )
    nopeek_weight: float = Field(
        0.0,
        ge=0,
        description="NoPeek: weight of the distance correlation between a client's inputs and its smashed data in its "
        "loss; 0: off",
    )
    smashed_clip: float = Field(
        0.0, ge=0, description="the largest L2 norm of one sample's smashed data, to which clients clip it; 0: off"
    )
    smashed_noise: float = Field(
        0.0, ge=0, description="standard deviation of Gaussian noise that clients add to their smashed data; 0: off"
    )
    defence: str = Field(
        "",
        description="what clients do to their smashed data, one's own as package.module:name; empty: the three above",
    )
    dp_noise: float = Field(
        0.0,
        ge=0,
        description="differential privacy of what clients receive (sglr, slr, sgl, psl): noise multiplier, standard "
        "deviation over sensitivity of each release; 0: off",
    )
    dp_protects: Literal["updates", "messages"] = Field(
        "updates",
        description="updates: noise on SplitAvg's average and on the server's steps, to which each client's share is "
        "bounded; messages: noise on every message to a client, whatever went into it",
    )
    dp_clip: float = Field(1.0, gt=0, description="the largest L2 norm of a client's cut gradient, with dp-noise")
    dp_clip_per: Literal["client", "sample"] = Field(
        "client", description="what dp-clip bounds: a client's cut gradient as a whole, or that of each of its samples"
    )
    dp_server_clip: float = Field(
        1.0,
        gt=0,
        description="the largest L2 norm of a client's gradient by the server segment's weights, with dp-noise",
    )
    dp_delta: float = Field(1e-5, gt=0, lt=1, description="delta at which epsilon is stated, with dp-noise")
    dp_epsilon_budget: float = Field(
        0.0, ge=0, description="the run ends before the round that would bring epsilon above this; 0: no budget"
    )
    noise_seed: int = Field(
        -1,
        ge=-1,
        lt=2**31,
        description="-1: noise comes from the operating system, and nobody can draw it again; from 0: it follows from "
        "this number, for experiments, and protects from nobody who knows the run-config",
    )
    loss: str = Field(
        "cross-entropy",
        description="mean over the samples: cross-entropy, binary-cross-entropy (softmax, then over the classes), mse "
        "and l1 of numbers, bce-with-logits of several labels, or one's own as package.module:name (a function of "
        "outputs and targets, or a torch.nn module)",
    )
    score: str = Field(
        "",
        description="how good a network is, of each sample: a function (outputs, targets) as package.module:function; "
        "empty: accuracy, for several labels the share that is right, for values the mean squared error",
    )
    initial_segments: Literal["independent", "shared"] = Field(
        "independent",
        description="clients' initial weights: each its own draw, or all the same; always the same where the method "
        "averages or hands on segments",
    )
    sample_order: Literal["every-epoch", "once"] = Field(
        "every-epoch", description="a client's samples are shuffled every epoch, or once and reused"
    )
    exchange: Literal["auto", "stream", "grid"] = Field(
        "auto",
        description="how a step's tensors travel: stream (gRPC), grid (Flower messages), or auto (stream, and "
        "grid where no stream can be had)",
    )
    wire_up: str = Field(
        "none",
        description="codec of smashed data: none, bfloat16, float16, int8, int8-channel (8 bits and a scale for each "
        "sample, or for each of its channels), topk:F (the fraction F of a sample's values), or randtopk:F:A (these "
        "with a random tail of probability A), or one's own as package.module:name",
    )
    wire_down: str = Field("none", description="codec of cut gradients: as wire-up")
    step_timeout: float = Field(
        300.0,
        gt=0,
        description="seconds that a node or the server waits for the other side's next frame; a node that is later "
        "leaves the round",
    )
    start_timeout: float = Field(
        300.0,
        gt=0,
        description="seconds that a node may take to begin a round, and that a round waits for nodes to come back "
        "where too few are left",
    )
    min_clients: int = Field(
        0,
        ge=0,
        description="clients that must be left for a round to go on without nodes that fail; 0: all that take part in "
        "it, so that a node that fails ends the round",
    )
    round_retries: int = Field(
        0,
        ge=0,
        description="how often a round that lost too many clients is trained again, from the weights before it; then "
        "the run ends",
    )
    evaluate: Literal["server", "client"] = Field(
        "server",
        description="server: client segments come up and are scored on the server's samples; client: smashed "
        "test samples go up, no weights leave",
    )
    evaluate_every: int = Field(
        1,
        ge=0,
        description="rounds between evaluations; the last round is always evaluated; 0: only that one",
    )
    evaluate_samples: int = Field(
        1000,
        ge=0,
        description="validation samples, and as many test samples, scored per client at an evaluation; 0: all",
    )
    stop_if_diverged: bool = Field(
        False,
        description="end the run at the first round whose training loss is far above what it is without any learning, "
        "or whose losses are not finite; the checkpoints before it stay. Otherwise it is only said",
    )
    checkpoint_every: int = Field(1, ge=1, description="rounds between checkpoints; the last round has one too")
    checkpoints_kept: int = Field(
        3,
        ge=0,
        description="checkpoints that are kept, the newest ones; 0: all, for what `sglr analyze` shows over time",
    )
    track: str = Field(
        "",
        description="who is told of every round, beside TensorBoard: mlflow, wandb, trackio, an observer of one's own "
        "as package.module:name, or several of them with commas; empty: nobody",
    )
    dtype: Literal["float32", "float64"] = Field(
        "float32", description="of weights and activations; float64 to check numbers"
    )
    autocast: Literal["none", "bfloat16"] = Field(
        "none",
        description="bfloat16: segments multiply in bfloat16 by torch.autocast, which is faster where the device has "
        "instructions for it, and some ten times slower on a CPU that has none; weights, optimizers and what travels "
        "stay float32; the results are others",
    )
    server_device: str = Field(
        "",
        description="where the server segment computes: cpu, cuda, or cuda:N; empty: the GPU if there is one",
    )
    recompute: bool = Field(
        False,
        description="clients keep no activations while the server computes, and make each forward a second time: less "
        "memory, more time, the same weights",
    )
    cohort: Literal["auto", "loop", "stacked", "graph"] = Field(
        "auto",
        description="how a node computes its clients: loop, one after the other; stacked, all at once where the client "
        "segment allows it (no dropout; not with recompute); graph, as stacked, and with --in-process a whole step of "
        "clients and server as one CUDA graph where it can be recorded; auto: stacked on a GPU, loop on a CPU; the "
        "same weights",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="every random draw of the run follows from it")
    run_dir: str = Field(
        "",
        description="absolute folder the run writes; empty: a new one, ./runs/NAME with `sglr "
        "run`, in the user's data folder with `flwr run`",
    )
    resume: bool = Field(
        False, description="continue the run in run-dir from its last checkpoint; set by `sglr resume`"
    )

    @model_validator(mode="before")
    @classmethod
    def _parts_of_the_task(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Put a task's parts in place of the keys that they answer; nothing is imported."""
        task = values.get("task")
        if not isinstance(task, str) or not task:
            return values
        if not imports.is_path(task):
            raise UserError(f"run-config key task = {task!r}: it must be package.module:name")
        parts = {key: f"{task}.{part}" for key, part in _TASK_PARTS.items()}
        for key, path in parts.items():
            if values.get(key, path) not in (path, cls.model_fields[key].default):
                raise UserError(f"run-config key {key} = {values[key]!r}: it is the task's to say with task = {task!r}")
        return {**values, **parts}

    @field_validator(
        *("client_lr", "splitlr_alpha", "splitavg_phi", "fraction_train", "step_timeout", "start_timeout"),
        *("momentum", "weight_decay", "nopeek_weight", "smashed_clip", "smashed_noise"),
        *("dp_noise", "dp_clip", "dp_server_clip", "dp_epsilon_budget"),
        mode="before",
    )
    @classmethod
    def _whole_number_is_a_rate(cls, value: object) -> object:
        # TOML and `-s key=1` give an int where a person means 1.0; bool is an int in Python and no number here.
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("method", "model")
    @classmethod
    def _known(cls, value: str, info: ValidationInfo) -> str:
        key = str(info.field_name)
        return imports.known(key, value, methods.METHODS if key == "method" else MODELS)

    @field_validator("optimizer", "server_optimizer")
    @classmethod
    def _known_optimizer(cls, value: str, info: ValidationInfo) -> str:
        if not value and info.field_name == "server_optimizer":
            return value
        return imports.known(_kebab(str(info.field_name)), value, OPTIMIZERS)

    @field_validator("classes")
    @classmethod
    def _known_classes(cls, value: str, info: ValidationInfo) -> str:
        names = _class_names(value)
        if value and info.data.get("dataset", "folder") != "folder":
            raise ValueError("it must be empty where dataset is not folder")
        if value and (len(names) < 2 or "" in names or len(set(names)) < len(names)):
            raise ValueError("it must be two or more different names with commas, or empty")
        return value

    @field_validator("channels")
    @classmethod
    def _only_of_own_models(cls, value: int, info: ValidationInfo) -> int:
        model = info.data.get("model", "")
        if value == 1 and not imports.is_path(model):
            raise ValueError(f"model {model} is made for three channels, one's own may be made for one")
        return value

    @field_validator("levels")
    @classmethod
    def _known_levels(cls, value: str) -> str:
        levels.parse(value)
        return value

    @field_validator("ground")
    @classmethod
    def _known_colour(cls, value: str) -> str:
        if value not in ("white", "black", "none"):
            from PIL import ImageColor

            try:
                ImageColor.getrgb(value)
            except ValueError:
                raise ValueError("it must be a colour such as white or #80ff00, or none") from None
        return value

    @field_validator("momentum")
    @classmethod
    def _only_of_sgd(cls, value: float, info: ValidationInfo) -> float:
        if value and "sgd" not in _optimizers(info):
            raise ValueError("it must be 0 where neither optimizer nor server-optimizer is sgd")
        return value

    @field_validator("weight_decay")
    @classmethod
    def _only_of_ours(cls, value: float, info: ValidationInfo) -> float:
        if -1 < value < 0:
            raise ValueError("it must be -1, or from 0")
        if value >= 0 and not _optimizers(info) & set(OPTIMIZERS):
            raise ValueError(f"it must be -1 where no optimizer is one of {', '.join(OPTIMIZERS)}")
        return value

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, value: str) -> str:
        return imports.known("loss", value, LOSSES)

    @field_validator("defence")
    @classmethod
    def _known_defence(cls, value: str) -> str:
        if value and not imports.is_path(value):
            raise ValueError("it must be empty, or package.module:name")
        return value

    @field_validator("dp_epsilon_budget")
    @classmethod
    def _only_with_noise(cls, value: float, info: ValidationInfo) -> float:
        if value and not info.data.get("dp_noise", 1.0):
            raise ValueError("it must be 0 without dp-noise, as nothing then bounds epsilon")
        return value

    @field_validator("noise_seed")
    @classmethod
    def _no_budget_of_public_noise(cls, value: int, info: ValidationInfo) -> int:
        if value >= 0 and info.data.get("dp_epsilon_budget"):
            raise ValueError("it must be -1 with dp-epsilon-budget: noise that can be drawn again has no epsilon")
        return value

    @field_validator("min_clients")
    @classmethod
    def _at_most_all_clients(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("num_clients", value):
            raise ValueError(f"it must be at most num-clients = {info.data['num_clients']}")
        return value

    @field_validator("autocast")
    @classmethod
    def _only_of_float32(cls, value: str, info: ValidationInfo) -> str:
        if value != "none" and info.data.get("dtype") == "float64":
            raise ValueError("it must be none with dtype = 'float64', which is there to check numbers")
        return value

    @field_validator("server_device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"(cpu|cuda(:(0|[1-9]\d?))?)?", value):
            raise ValueError("it must be cpu, cuda, cuda:N, or empty")
        return value

    @field_validator("track")
    @classmethod
    def _known_trackers(cls, value: str) -> str:
        names = _listed(value)
        known = all(name in TRACKERS or imports.is_path(name) for name in names)
        if value and not (known and len(set(names)) == len(names)):
            raise ValueError(
                f"it must be {', '.join(TRACKERS)}, package.module:name, several of them with commas, or empty"
            )
        return value

    @field_validator("lr_schedule", "server_lr_schedule")
    @classmethod
    def _known_schedule(cls, value: str, info: ValidationInfo) -> str:
        if value or info.field_name == "lr_schedule":
            splitlr.schedule(value, 1)
        return value

    @field_validator("wire_up", "wire_down")
    @classmethod
    def _known_codec(cls, value: str) -> str:
        if not codecs.is_own(value):
            codecs.parse(value)
        return value

    @field_validator("score")
    @classmethod
    def _known_score(cls, value: str) -> str:
        if value and not imports.is_path(value):
            raise ValueError("it must be empty, or package.module:name")
        return value

    @field_validator("splitavg_phase")
    @classmethod
    def _known_phase(cls, value: str) -> str:
        splitavg.in_phase(value, 1, 1)
        return value

    @model_validator(mode="after")
    def _fits_its_method(self) -> RunConfig:
        if self.method in methods.METHODS:  # one's own is not imported here: `checks.check_parts` does it
            self.refuse_with(methods.METHODS[self.method])
        return self

    def refuse_with(self, method: Method) -> None:
        """Refuse settings that the method has no use for, or whose promise it would break.

        Raises
        ------
        UserError
            With one sentence, as of `parse`.
        """
        wrong: dict[str, str] = {}
        if method.whole:
            # Without effect they would look like a protection.
            wrong |= dict.fromkeys(
                ("nopeek-weight", "smashed-clip", "smashed-noise"),
                f"it must be 0 with method {self.method}, which has no smashed data",
            )
            wrong["defence"] = f"it must be empty with method {self.method}, which has no smashed data"
            wrong["server-optimizer"] = f"it must be empty with method {self.method}, whose server learns nothing"
            sends_none = f"it must be none with method {self.method}, which sends no smashed data"
            wrong |= dict.fromkeys(("wire-up", "wire-down"), sends_none)
        elif self.nopeek_weight or self.smashed_clip or self.smashed_noise:
            wrong["defence"] = "it must be empty with nopeek-weight, smashed-clip or smashed-noise, which are another"
        if method.shares_segment or method.server is not methods.joint:
            unprotected = "client segments or server copies would go unprotected"
            wrong["dp-noise"] = f"it must be 0 with method {self.method}: {unprotected}"
        if self.dp_noise and method.cut_gradient not in (None, splitavg.average):
            wrong["dp-protects"] = f"it must be messages with method {self.method}, whose rule has no known sensitivity"
        for key, value in self.values().items():
            if key in wrong and value not in (0, "", "none", "messages"):
                raise UserError(f"run-config key {key} = {value!r}: {wrong[key]}")

    @property
    def imports_code(self) -> bool:
        """Whether a part of it is one's own, by its import path."""
        return any(imports.is_path(part) for key in OWN for part in _listed(str(self.values()[key])))

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> RunConfig:
        """Validate ``values``, whose keys may have underscores for hyphens; keys left out take their defaults.

        Raises
        ------
        UserError
            With one sentence that names the first offending key, its value and what is allowed.
        """
        for key, value in values.items():
            if isinstance(value, str) and not value.isascii() and value != value.encode(errors="replace").decode():
                raise UserError(f"run-config key {_kebab(key)} = {value!a}: it must be UTF-8 text")
        try:
            return cls.model_validate(hyphened(values))
        except ValidationError as error:
            raise UserError(_sentence(error)) from None

    @property
    def tolerant(self) -> bool:
        """Whether the run may go on without a node that fails."""
        return self.min_clients > 0 or self.round_retries > 0

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names in ``classes``."""
        return _class_names(self.classes)

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in ``track``."""
        return _listed(self.track)

    def values(self) -> dict[str, Scalar]:
        """All keys (kebab-case) and values, as they are written to TOML and sent to nodes."""
        return self.model_dump(by_alias=True)

    def replace(self, **changes: Scalar) -> RunConfig:
        """A copy with some fields (underscored names) changed, validated again."""
        return RunConfig.parse({**self.values(), **{_kebab(key): value for key, value in changes.items()}})

    def to_toml(self) -> str:
        """The whole config as TOML text that `settings.read_config` and `flwr run --run-config` read."""
        return tomli_w.dumps(self.values())


def _optimizers(info: ValidationInfo) -> set[str]:
    """The optimizers of a run-config that is being read; of one that is none there is a sentence already."""
    return {info.data.get("optimizer", ""), info.data.get("server_optimizer", "")}


def keys() -> tuple[str, ...]:
    """All run-config keys, kebab-case, in the order in which they are documented."""
    return tuple(_kebab(name) for name in RunConfig.model_fields)


def hyphened(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their kebab-case keys, for those who write ``num_clients``.

    Raises
    ------
    UserError
        If a key is there in both spellings.
    """
    if twice := [key for key in values if "_" in key and _kebab(key) in values]:
        raise UserError(f"run-config key {_kebab(twice[0])} is given twice: as {twice[0]} too")
    return {_kebab(key): value for key, value in values.items()}


def documentation() -> list[tuple[str, str, str, str]]:
    """Key, default, range and meaning of every key, as text."""
    rows = []
    for name, field in RunConfig.model_fields.items():
        signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
        bounds = [
            f"{sign} {getattr(limit, attribute):,}"
            for limit in field.metadata
            for attribute, sign in signs.items()
            if hasattr(limit, attribute)
        ]
        allowed = ", ".join(bounds) or ", ".join(str(value) for value in get_args(field.annotation))
        rows.append((_kebab(name), repr(field.default), allowed, field.description or ""))
    return rows


def unknown_key(key: str) -> str:
    """The sentence on a key that there is not, with the nearest that there is."""
    import difflib

    close = difflib.get_close_matches(key, keys(), n=1)
    hint = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(keys())}"
    return f"unknown run-config key {key!r}: {hint}"


def _sentence(error: ValidationError) -> str:
    """Turn pydantic's first complaint into one sentence: key, value, what is allowed."""
    first = error.errors()[0]
    key, value = str(first["loc"][0]), first["input"]
    if first["type"] == "extra_forbidden":
        return unknown_key(key)
    key = _kebab(key)  # of a default that does not fit another key's value it is the field's name
    if first["type"] == "value_error":
        return f"run-config key {key} = {value!r}: {first['ctx']['error']}"
    allowed = str(first["msg"]).removeprefix("Input ")
    return f"run-config key {key} = {value!r}: it {allowed}"
