"""The tables and figures of arXiv 2112.05929 as runnable experiments, beside the paper's own numbers."""
