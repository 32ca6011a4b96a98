"""The attack of an honest-but-curious server, and what it is given.

As Table 5 of arXiv 2112.05929 has it: after training, the server decodes the smashed data of one random client with an
autoencoder's decoder. What the attacker trains the decoder on is *auxiliary* images and their smashed data:

- the images are the run's validation images: of the same distribution, and no client trains on them;
- their smashed data come from the attacked client's own segment (``knows`` = "client", our reading of the paper, which
  does not say it): the attacker has that segment, as the server has where it evaluates or averages segments, or may
  send images through it. With ``knows`` = "others" they come from the other clients' segments, and the attacked
  client's is never seen.

What it decodes is smashed data of images that are never among the auxiliary ones: the attacked client's own training
images (``on`` = "train"), or the test images sent through its segment ("test").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from sglr_flower.choices import KNOWS, LEAST_AUXILIARY, ON
from sglr_flower.data.samples import Batch, in_memory
from sglr_flower.data.source import subset
from sglr_flower.errors import UserError
from sglr_flower.run import assembly
from sglr_flower.seeds import generator
from sglr_flower.studies.leakage import inversion
from sglr_flower.studies.leakage.dependence import Dependence, dependence
from sglr_flower.studies.leakage.reconstruction import Fidelity, fidelity
from sglr_flower.studies.leakage.smashed import check_cut, smashed
from sglr_flower.studies.trained.network import Trained

EXAMPLES = 8
"""Images that are kept with their reconstructions, to look at."""


@dataclass(frozen=True)
class Settings:
    """An attack on a run.

    Attributes
    ----------
    client : int | None
        Who is attacked; None: drawn, another one for each repeat as long as there are others.
    knows : str
        Whose segment the auxiliary images' smashed data come from: one of `KNOWS`.
    on : str
        Which images are attacked: one of `ON`.
    auxiliary, samples : int
        How many images the attacker has, and how many are attacked, at most; both drawn class-balanced.
    decoder_steps : int
        Of the decoder's optimizer.
    repeats : int
        Attacks, each with a decoder of its own.
    seed : int
        Names all draws.
    """

    client: int | None = None
    knows: str = "client"
    on: str = "train"
    auxiliary: int = 2000
    samples: int = 1000
    decoder_steps: int = 400
    repeats: int = 1
    seed: int = 0

    def name(self, run_seed: int) -> str:
        """Empty for the attack by default on a run with this seed, else what is different: ``knows-others_seed-3``."""
        usual = asdict(Settings(seed=run_seed))
        other = {key: value for key, value in asdict(self).items() if value != usual[key]}
        return "_".join(f"{key.replace('_', '-')}-{value}" for key, value in other.items())


@dataclass(frozen=True, eq=False)
class Attack:
    """What one attack gave.

    Attributes
    ----------
    client : int
        Who was attacked.
    images, auxiliary : int
        How many were attacked, and how many the attacker had.
    reconstruction : Fidelity
        Of the attacked images.
    mean_image : Fidelity
        The same where every image's reconstruction is the mean of the auxiliary images: what one can do without any
        smashed data.
    auxiliary_cross_entropy : float
        Of the images that the decoder was trained on.
    dependence : Dependence
        Between the auxiliary images and their smashed data from the attacked client's segment.
    examples, reconstructed : Tensor
        Some of the attacked images, uint8 (n, channels, size, size), and their reconstructions, float32 in [0, 1].
    feature_maps : Tensor
        Their smashed data, float32 (n, *cut shape).
    """

    client: int
    images: int
    auxiliary: int
    reconstruction: Fidelity
    mean_image: Fidelity
    auxiliary_cross_entropy: float
    dependence: Dependence
    examples: Tensor
    reconstructed: Tensor
    feature_maps: Tensor

    def measures(self) -> dict[str, float | None]:
        """All figures by name."""
        return {
            **asdict(self.reconstruction),
            **{f"mean_image_{name}": value for name, value in asdict(self.mean_image).items() if name != "entropy"},
            "auxiliary_cross_entropy": self.auxiliary_cross_entropy,
            **asdict(self.dependence),
        }


def attacks(model: Trained, settings: Settings) -> Iterator[Attack]:
    """Attack a run's clients, one after the other.

    Parameters
    ----------
    model : Trained
        What the run has trained.
    settings : Settings
        How.

    Raises
    ------
    UserError
        If the run has no such client, sends no smashed data or such as cannot be decoded, or has too few images.
    """
    check(model, settings)
    drawn = clients(model, settings)
    return (attack(model, replace(settings, client=client), number) for number, client in enumerate(drawn))


def check(model: Trained, settings: Settings) -> None:
    """Find the mistakes that show before anything is computed.

    Raises
    ------
    UserError
        As `attacks`.
    """
    check_cut(model)
    if settings.client is not None:
        model.check_client(settings.client)
    for option, value, allowed in (("--knows", settings.knows, KNOWS), ("--on", settings.on, ON)):
        if value not in allowed:
            raise UserError(f"{option} {value}: it must be one of {', '.join(allowed)}")
    if settings.knows == "others" and len(model.clients) == 1:
        raise UserError("--knows others: the run has one client only, so there is no other to learn from")
    if settings.on == "train" and model.config.partition == "own":
        raise UserError(
            "--on train: with partition = 'own' the clients' images are on their devices and not here; give --on test"
        )


def clients(model: Trained, settings: Settings) -> list[int]:
    """Who is attacked in each repeat: the chosen client, or all of them in a drawn order, again and again."""
    if settings.client is not None:
        return [settings.client] * settings.repeats
    order = torch.randperm(len(model.clients), generator=generator(settings.seed, "attack", "clients")).tolist()
    return [model.clients[order[number % len(order)]] for number in range(settings.repeats)]


def attack(model: Trained, settings: Settings, number: int) -> Attack:
    """Attack ``settings.client``; ``number``, from 0, tells the decoders of repeats apart.

    Raises
    ------
    UserError
        As `attacks`.
    """
    assert settings.client is not None
    auxiliary, attacked = images(model, settings)
    own = smashed(model, settings.client, auxiliary.images, "auxiliary")
    known = own if settings.knows == "client" else _of_others(model, settings.client, auxiliary.images)
    decoder = inversion.train(known, auxiliary.images, settings.decoder_steps, settings.seed, number)
    given = smashed(model, settings.client, attacked.images, "attacked")
    target, source = inversion.as_target(attacked.images), inversion.as_target(auxiliary.images)
    guess = inversion.reconstruct(decoder, given)
    # Their positions, drawn as the images themselves would be.
    shown = in_memory(subset(Batch(torch.arange(len(attacked)), attacked.labels), EXAMPLES, settings.seed)).images
    return Attack(
        client=settings.client,
        images=len(attacked),
        auxiliary=len(auxiliary),
        reconstruction=fidelity(target, guess),
        mean_image=fidelity(target, source.mean(0).expand_as(target)),
        auxiliary_cross_entropy=F.binary_cross_entropy(inversion.reconstruct(decoder, known), source).item(),
        dependence=dependence(source, own),
        examples=attacked.images[shown],
        reconstructed=guess[shown],
        feature_maps=given[shown],
    )


def images(model: Trained, settings: Settings) -> tuple[Batch, Batch]:
    """The auxiliary images and the attacked ones, which are of two splits of the data set that have none in common.

    Raises
    ------
    UserError
        If there are too few.
    """
    whole = assembly.splits(model.config)
    auxiliary = in_memory(subset(whole.validation, settings.auxiliary, settings.seed))
    if len(auxiliary) < LEAST_AUXILIARY:
        raise UserError(
            f"the attacker needs at least {LEAST_AUXILIARY} auxiliary images, and the run has {len(whole.validation)} "
            "validation images to take them from"
        )
    if settings.on == "test":
        return auxiliary, in_memory(subset(whole.test, settings.samples, settings.seed))
    assert settings.client is not None
    share = assembly.client_data(model.config, [settings.client])[settings.client]
    if not len(share):
        raise UserError(
            f"client {settings.client} has no training images to attack; give another --client or --on test"
        )
    return auxiliary, in_memory(subset(in_memory(share), settings.samples, settings.seed))


def threat(settings: Settings, found: Attack, clients: int) -> str:
    """What the attacker had and what it attacked, in a sentence or two."""
    if settings.knows == "client":
        source = "the attacked client's own segment"
    else:
        source = f"the other {clients - 1} clients' segments, each a part of them"
    whose = "the client's training images" if settings.on == "train" else "test images through the client's segment"
    return (
        f"The attacker trained a decoder on {found.auxiliary:,} validation images and their smashed data from "
        f"{source}. It decoded smashed data of {found.images:,} images that it had not seen: {whose}."
    )


def _of_others(model: Trained, client: int, auxiliary: Tensor) -> Tensor:
    """Smashed data (n, *cut shape) of auxiliary images from the other clients' segments, from each in turn."""
    others = [other for other in model.clients if other != client]
    turn = torch.arange(len(auxiliary)) % len(others)
    parts = [(turn == place).nonzero().flatten() for place in range(len(others))]
    found = [
        smashed(model, other, auxiliary[part], "auxiliary")
        for other, part in zip(others, parts, strict=True)
        if len(part)
    ]
    return torch.cat(found)[torch.cat(parts).argsort()]
