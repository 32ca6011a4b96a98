"""One run: its settings, its assembly, the loop over rounds, what it writes and reads back, what a person sees."""
