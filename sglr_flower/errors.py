"""The one exception for a user's mistake."""


class UserError(Exception):
    """A mistake the user can mend: shown as its one sentence, without a traceback.

    The sentence names the key or file, the value found there, and what is allowed.
    """


class TooFewClients(RuntimeError):
    """Fewer clients are left in a round than it needs (run-config key ``min-clients``)."""
