"""What a run-config says of how a data set is read, beyond its name, folder, seed and image size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """How a data set is read; hashable.

    Attributes
    ----------
    classes : tuple of str
        The classes of dataset ``folder``, by class number, of which its folder may then have any part; empty: it has
        all of them.
    channels : int
        Of an image as a model reads it: 1, grey, or 3; 0: three, whatever is stored.
    levels : str
        Of image files with more than 8 bits: the range that becomes 0 to 255, see `levels.parse`.
    ground : str
        The colour that is seen where an image file is transparent, as Pillow names it; ``none``: what colour it has
        there itself.
    skip_unreadable : bool
        Whether files that cannot be read are left out rather than refused.
    kept : str
        The folder in which the run keeps what data it has (see `pinned`); empty: none.
    cache : int
        Megabytes of images that are kept there as they were read (see `imagecache`); 0: none.
    """

    classes: tuple[str, ...] = ()
    channels: int = 0
    levels: str = "auto"
    ground: str = "white"
    skip_unreadable: bool = False
    kept: str = ""
    cache: int = 0


NO_GROUND = "none"
DEFAULT = Options()
