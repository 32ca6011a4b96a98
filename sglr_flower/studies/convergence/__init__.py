"""What convergence depends on, at the checkpoints of runs (docs/convergence.md)."""
