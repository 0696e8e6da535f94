"""The one exception for a mistake in what the user gave.

The command line prints it as one line and exits with status 2; any other exception is a bug and keeps its
traceback.
"""


class InputError(ValueError):
    """An argument, file or folder is not what was expected; the message names it, what came and what was expected."""
