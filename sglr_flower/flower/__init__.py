"""Both sides of a run over Flower messages: the strategy and the nodes."""
