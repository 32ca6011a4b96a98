"""What one client computes in a whole run, as Table 4 reports it."""

from __future__ import annotations

from sglr_flower import models
from sglr_flower.models.compute import training_flops
from sglr_flower.run import assembly
from sglr_flower.run.config import RunConfig
from sglr_flower.split import methods


def client_petaflops(config: RunConfig) -> float:
    """10^15 floating-point operations of one client over all rounds; counted on the real network (`training_flops`).

    Of a method without a cut this is the whole network's, and of centralised training that on all clients' samples.
    """
    method = methods.get(config.method)
    model = assembly.model(config)
    network = model.whole()
    cut = models.cut_index(network, config.cut or models.get(config.model).cut)
    per_sample = training_flops(network, cut, model.inputs)
    samples = config.num_server_rounds * config.local_epochs * config.samples_per_client
    if method.pooled:
        samples *= config.num_clients
    return samples * (per_sample.whole if method.whole else per_sample.client) / 1e15
