"""sglr-flower: SGLR split learning (arXiv 2112.05929) as a Flower app."""

__version__ = "0.1.0"
