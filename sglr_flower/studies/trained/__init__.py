"""The result of a run: its network, scored, exported, applied."""
