"""The one kind of error that is the user's to mend."""


class KdistillError(Exception):
    """Something the user can mend: one line that says what, where, and with which command."""


class UsageError(KdistillError):
    """A setting that no run could have; the command line exits 2 for it and 1 for the rest."""
