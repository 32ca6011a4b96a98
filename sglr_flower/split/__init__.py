"""The engine: cohort, server segment, one step, one round. Torch only, no transport in it."""
