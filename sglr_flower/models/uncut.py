"""A model that is not cut: FedAvg's and centralised training's."""

from __future__ import annotations

from torch import nn

from sglr_flower.models import SplitModel


class UncutModel(SplitModel):
    """The client segment is the whole network; the server segment has no stage and hands logits through."""

    def client_segment(self, client: int) -> nn.Sequential:
        """The whole network with one client's initial weights."""
        return self.whole(client)

    def server_segment(self) -> nn.Sequential:
        """No stage at all."""
        return nn.Sequential()
