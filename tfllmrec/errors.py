"""What can go wrong, and the exit code that each kind maps to.

Every message says what was expected, what came, and what to do about it. The command line prints the message without a
traceback and exits with the class's ``exit_code``; anything that is not a :class:`TfllmrecError` is a bug and exits 1.
"""


class TfllmrecError(Exception):
    """Base of every error that a user can mend."""

    exit_code = 1


class ConfigError(TfllmrecError):
    """A setting, a key or a command-line argument is wrong."""

    exit_code = 2


class DataError(TfllmrecError):
    """An input file or table cannot be used; names the file, row and column where there is one."""

    exit_code = 3


class ModelError(TfllmrecError):
    """A model, run folder or SavedModel cannot be used, or training went wrong."""

    exit_code = 4
