"""The exceptions for a user's mistake and for what ends a run."""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can mend: shown as its one sentence, without a traceback.

    The sentence names the key or file, the value found there, and what is allowed.

    Attributes
    ----------
    details : str
        The traceback that the sentence stands for, of another process; empty: `traceback_of` has it from its cause.
    """

    details = ""


class Diverged(UserError):
    """The training has left the numbers: smashed data, cut gradients or a loss that are not finite."""


class TooFewClients(RuntimeError):
    """Fewer clients are left in a round than it needs (run-config key ``min-clients``)."""


def traceback_of(error: BaseException) -> str:
    """The traceback that a sentence stands for; empty if there is none."""
    import traceback  # for a mistake only

    details, cause = getattr(error, "details", ""), error.__cause__
    return details or ("" if cause is None else "".join(traceback.format_exception(cause)))
