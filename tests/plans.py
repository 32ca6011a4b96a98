"""The round of a test: it says by `dataclasses.replace` what differs from this one."""

from sglr_flower.split.loss import cross_entropy
from sglr_flower.split.plan import RoundPlan

PLAN = RoundPlan(
    seed=0,
    server_round=1,
    clients=(0, 1, 2),
    local_epochs=1,
    batch_size=4,
    reshuffle=True,
    client_lr=0.1,
    alpha=0.0,
    phi=0.0,
    average_over="clients",
    gradient_scale="own",
    loss=cross_entropy,
)
