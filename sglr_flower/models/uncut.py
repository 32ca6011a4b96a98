"""A model that is not cut: FedAvg's and centralised training's."""

from __future__ import annotations

from torch import nn

from sglr_flower.models import SplitModel, cut_index


class UncutModel(SplitModel):
    """The client segment is the whole network; the server segment has no stage and hands logits through."""

    def client_segment(self, client: int) -> nn.Sequential:
        """The whole network with one client's initial weights."""
        network = self.whole(client)
        if self.cut:
            cut_index(network, self.cut)  # of no use here, but a wrong one is a mistake with every method
        return network

    def server_segment(self) -> nn.Sequential:
        """No stage at all."""
        return nn.Sequential()

    def segments(self) -> tuple[nn.Sequential, nn.Sequential]:
        """The whole network, and no stage."""
        return self.client_segment(0), nn.Sequential()
