"""Measurements of what the project costs, as ratios on the machine they run on; none of them is a test."""
