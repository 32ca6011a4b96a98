"""``python -m sglr_flower.cli`` is ``sglr``."""

from sglr_flower.cli import main

main()
