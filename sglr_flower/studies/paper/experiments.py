"""The experiments: the paper's tables and figures, and what else was compared."""

from __future__ import annotations

from collections.abc import Mapping

from sglr_flower.split.methods import METHODS
from sglr_flower.studies.paper import published
from sglr_flower.studies.paper.experiment import Experiment, Grid
from sglr_flower.studies.paper.labels import (
    SCHEDULES,
    alexnet_by_method,
    by_alpha_and_phi,
    by_codec,
    by_defence,
    by_initial,
    by_method,
    by_phase,
    by_privacy,
    by_schedule,
    paper_accuracy,
    paper_alexnet,
    paper_of_method,
    paper_of_schedule,
    paper_reconstruction,
)
from sglr_flower.studies.paper.measures import ACCURACY, CROSS_ENTROPY, EPSILON, EXCESS, LEAKAGE, MEGABYTES
from sglr_flower.studies.paper.scales import SCALES

_CLIENTS = (1, 2, 4, 6, 8, 10, 15, 20)
_TABLE_4_METHODS = ("centralized", "fedavg", "sglr", "sfl", "psl")
_SPLIT_ALONE = ("sglr", "slr", "sgl", "psl")
"""Methods whose clients never have each other's segments."""
_CODECS = (
    "none",
    "bfloat16",
    "float16",
    "int8",
    "int8-channel",
    "int8+none",
    "none+int8",
    "topk:0.1",
    "randtopk:0.1:0.1+topk:0.1",
    "topk:0.02",
    "randtopk:0.02:0.1+topk:0.02",
)
_DEFENCES = (
    "none",
    "nopeek-weight=0.5",
    "nopeek-weight=5",
    "smashed-noise=0.5",
    "smashed-noise=2",
    "smashed-clip=20 smashed-noise=0.5",
    "smashed-clip=20 smashed-noise=2",
)
_PRIVACY = (
    "none",
    "dp-noise=0.001",
    "dp-noise=0.01",
    "dp-noise=0.1",
    "dp-noise=1",
    "dp-noise=0.01 dp-protects=messages",
    "dp-noise=0.1 dp-protects=messages",
)
_PHIS: Mapping[str, Grid] = {
    "full": {"clients": (6,), "phi": (0.0, 0.25, 0.5, 0.75, 1.0)},
    "small": {"clients": (6,), "phi": (0.0, 0.25, 0.5, 0.75, 1.0)},
    "smoke": {"clients": (4,), "phi": (0.0, 1.0)},
}
_AT_HALF = "alpha and phi are 0.5 where a method has them"

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            name="table1",
            title="Table 1: SplitLr, accuracy by clients and alpha",
            rows="clients",
            columns=("alpha",),
            grids={
                "full": {"clients": _CLIENTS, "alpha": (0.0, 0.5, 1.0, 1.5, 2.0)},
                "short": {"clients": (10, 20), "alpha": (0.0, 0.5, 1.0, 1.5, 2.0)},
                "small": {"clients": (2, 10, 20), "alpha": (0.0, 0.5, 1.0, 1.5, 2.0)},
                "smoke": {"clients": (2, 4), "alpha": (0.0, 1.0)},
            },
            settings=by_alpha_and_phi,
            paper=paper_accuracy,
            plain={"alpha": 0.0},
            picture="lines",
        ),
        Experiment(
            name="table2",
            title="Table 2: SplitLr and SplitAvg, accuracy by clients, alpha and phi",
            rows="clients",
            columns=("alpha", "phi"),
            grids={
                "full": {"clients": _CLIENTS, "alpha": (0.0, 0.5, 1.0), "phi": (0.0, 0.25, 0.5, 0.75)},
                "short": {"clients": (10, 20), "alpha": (0.0, 0.5, 1.0), "phi": (0.0, 0.25, 0.5, 0.75)},
                "small": {"clients": (2, 10, 20), "alpha": (0.0, 0.5, 1.0), "phi": (0.0, 0.25, 0.5, 0.75)},
                "smoke": {"clients": (2, 4), "alpha": (0.0, 1.0), "phi": (0.0, 0.5)},
            },
            settings=by_alpha_and_phi,
            paper=paper_accuracy,
            plain={"alpha": 0.0, "phi": 0.0},
            picture="heat map",
        ),
        Experiment(
            name="table3",
            title="Table 3: phased SplitAvg, accuracy by clients and phase",
            rows="clients",
            columns=("phase",),
            grids={
                "full": {
                    "clients": (2, 4, 8, 10, 15, 20),
                    "phase": ("none", "first:0.6", "first:0.4", "last:0.6", "last:0.4", "always"),
                },
                "short": {
                    "clients": (10, 20),
                    "phase": ("none", "first:0.6", "first:0.4", "last:0.6", "last:0.4", "always"),
                },
                "small": {
                    "clients": (2, 10, 15, 20),
                    "phase": ("none", "first:0.6", "first:0.4", "last:0.6", "last:0.4", "always"),
                },
                "smoke": {"clients": (2, 4), "phase": ("none", "first:0.6", "always")},
            },
            settings=by_phase,
            paper=lambda labels: published.phased_accuracy(int(labels["clients"]), str(labels["phase"])),
            plain={"phase": "none"},
            picture="lines",
            note="alpha is 1; all clients are averaged while the phase lasts, and none is outside of it",
        ),
        Experiment(
            name="table4",
            title="Table 4: AlexNet with 5 clients, accuracy and computation of a client",
            rows="method",
            columns=(),
            grids={name: {"method": _TABLE_4_METHODS, "clients": (5,)} for name in SCALES},
            settings=alexnet_by_method,
            paper=paper_alexnet,
            plain={"method": "psl"},
            picture="points",
            note=f"{_AT_HALF}; the paper does not say which form of AlexNet it is, ours is for small images",
            compute=True,
        ),
        Experiment(
            name="table5",
            title="Table 5: what an attack reconstructs, by phi",
            rows="phi",
            columns=("clients",),
            grids=_PHIS,
            settings=by_alpha_and_phi,
            paper=paper_reconstruction,
            picture="points",
            note="alpha 0 is our choice. Of each run one drawn client is attacked after training, by sglr attack as it "
            "is by default: the decoder is trained on validation images and their smashed data from that client's "
            "segment, and is scored on that client's training images. Cross-entropy is binary, in nats per pixel; its "
            "floor is that of the images with themselves, and of the mean image is what a guess without smashed data "
            "has. How the paper scaled the pixels is not known, so its numbers may have another floor",
            measure=CROSS_ENTROPY,
            beside=(*LEAKAGE, ACCURACY),
            attack=True,
            also=("reconstructions", "feature maps"),
        ),
        Experiment(
            name="fig2",
            title="Figure 2: accuracy per round for each alpha",
            rows="alpha",
            columns=("clients",),
            grids={
                "full": {"clients": (6,), "alpha": (0.0, 0.5, 1.0, 1.5)},
                "small": {"clients": (6,), "alpha": (0.0, 0.5, 1.0, 1.5)},
                "smoke": {"clients": (4,), "alpha": (0.0, 1.0)},
            },
            settings=by_alpha_and_phi,
            paper=paper_accuracy,
            plain={"alpha": 0.0},
            picture="curves",
            note="phi is 0; the paper's column is Table 1's, the figure itself has no numbers",
        ),
        Experiment(
            name="fig3",
            title="Figure 3: accuracy per round for each phi",
            rows="phi",
            columns=("clients",),
            grids={
                "full": {"clients": (6,), "phi": (0.0, 0.25, 0.5, 0.75, 1.0)},
                "small": {"clients": (6,), "phi": (0.0, 0.25, 0.5, 0.75, 1.0)},
                "smoke": {"clients": (4,), "phi": (0.0, 0.5, 1.0)},
            },
            settings=by_alpha_and_phi,
            paper=paper_accuracy,
            plain={"phi": 0.0},
            picture="curves",
            note="alpha 0 and the number of clients are our choice; "
            "the paper's column is Table 2's, the figure itself has no numbers",
        ),
        Experiment(
            name="fig4",
            title="Figure 4: feature maps at the cut for each phi",
            rows="phi",
            columns=("clients",),
            grids=_PHIS,
            settings=by_alpha_and_phi,
            paper=paper_accuracy,
            picture="feature maps",
            note="alpha 0, the client and the image are our choice; "
            "the paper's column is Table 2's, the figure itself has no numbers",
        ),
        Experiment(
            name="methods",
            title="All methods on the same data and seeds",
            rows="method",
            columns=("clients",),
            grids={
                "full": {"method": tuple(METHODS), "clients": (10, 20)},
                "short": {"method": tuple(METHODS), "clients": (10, 20)},
                "small": {"method": tuple(METHODS), "clients": (10,)},
                "smoke": {"method": tuple(METHODS), "clients": (4,)},
            },
            settings=by_method,
            paper=paper_of_method,
            plain={"method": "psl"},
            picture="points",
            note=f"{_AT_HALF}; not a table of the paper, which has numbers for some cells in Table 2",
            baseline="psl",
        ),
        Experiment(
            name="initial",
            title="Client segments that all start from the same weights",
            rows="method",
            columns=("clients",),
            grids={
                "full": {"method": _SPLIT_ALONE, "clients": (10, 20), "segments": ("shared",)},
                "small": {"method": _SPLIT_ALONE, "clients": (10,), "segments": ("shared",)},
                "short": {"method": _SPLIT_ALONE, "clients": (20,), "segments": ("shared",)},
                "smoke": {"method": _SPLIT_ALONE, "clients": (4,), "segments": ("shared",)},
            },
            settings=by_initial,
            paper=lambda labels: None,
            plain={"method": "psl"},
            picture="points",
            note=f"{_AT_HALF}; in methods every client's segment has initial weights of its own, as in the authors' "
            "code. Not a table of the paper",
            baseline="psl",
        ),
        Experiment(
            name="cycles",
            title="Cyclic learning rates beside others",
            rows="schedule",
            columns=("clients",),
            grids={
                "full": {"schedule": tuple(SCHEDULES), "clients": (10, 20)},
                "small": {"schedule": tuple(SCHEDULES), "clients": (10, 20)},
                "smoke": {"schedule": tuple(SCHEDULES), "clients": (4,)},
            },
            settings=by_schedule,
            paper=paper_of_schedule,
            plain={"schedule": "constant"},
            picture="points",
            note="alpha and phi are 0.5; the paper names this as future work, its number beside step is Table 2's; the "
            "cyclic factors move between 0.4 and 1.6 in 5 rounds, out of phase the server begins at the top; one-cycle "
            "moves between 0.2 and 2 in 90 % of the rounds, so that the mean rate of both is that of constant",
        ),
        Experiment(
            name="codecs",
            title="Wire codecs: accuracy by the bytes that training sends",
            rows="codec",
            columns=("clients",),
            grids={
                "full": {"codec": _CODECS, "clients": (10,)},
                "small": {"codec": _CODECS, "clients": (10,)},
                "smoke": {"codec": ("none", "int8", "randtopk:0.1:0.1+topk:0.1"), "clients": (4,)},
            },
            settings=by_codec,
            paper=lambda labels: None,
            plain={"codec": "none"},
            picture="trade-off",
            note="a codec is of both directions, or UP+DOWN; the method is psl, in which every client receives "
            "gradients of its own. MB are of smashed data and cut gradients, of one client over the whole training. "
            "Not a table of the paper",
            baseline="none",
            beside=(MEGABYTES,),
        ),
        Experiment(
            name="defences",
            title="Defences: accuracy by what an attack reconstructs",
            rows="defence",
            columns=("clients",),
            grids={
                "full": {"defence": _DEFENCES, "clients": (6,)},
                "small": {"defence": _DEFENCES, "clients": (6,)},
                "smoke": {"defence": ("none", "smashed-clip=20 smashed-noise=2"), "clients": (4,)},
            },
            settings=by_defence,
            paper=lambda labels: None,
            plain={"defence": "none"},
            picture="trade-off",
            note="the method is psl; each run is attacked as in table5, and the attack gets what the defence leaves. "
            "A higher cross-entropy is a worse reconstruction; its floor differs between seeds, as images do. Not a "
            "table of the paper",
            baseline="none",
            beside=(EXCESS, CROSS_ENTROPY, *LEAKAGE),
            attack=True,
            also=("reconstructions",),
        ),
        Experiment(
            name="privacy",
            title="Differential privacy of what clients receive: accuracy by epsilon",
            rows="privacy",
            columns=("clients",),
            grids={
                "full": {"privacy": _PRIVACY, "clients": (10,)},
                "small": {"privacy": _PRIVACY, "clients": (10,)},
                "smoke": {"privacy": ("none", "dp-noise=0.01"), "clients": (4,)},
            },
            settings=by_privacy,
            paper=lambda labels: None,
            plain={"privacy": "none"},
            picture="trade-off",
            note="alpha and phi are 0.5; a client's cut gradient is bounded to a norm of 0.05, and its gradient by the "
            "server's weights to 2, which is about what they have in the first hundred steps without it; epsilon is at "
            "delta 1e-5. Not a table of the paper, which names it as future work",
            baseline="none",
            beside=(EPSILON,),
        ),
    )
}
