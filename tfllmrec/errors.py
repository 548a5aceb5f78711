"""The errors that a user can correct, and their exit codes.

Every message says what was expected, what was found and what to do. The command line prints the message without a
traceback and exits with the class's ``exit_code``; an error of any other class is a bug and exits 1.
"""

from .wording import visible

#: The exit code of a check that runs and fails: an alarm of ``tfllmrec monitor`` or ``tfllmrec experiment analyze``, or
#: a run that is not promoted.
CHECK_FAILED = 5


class TfllmrecError(Exception):
    """Base of every error that a user can correct.

    Args:
      lines: The lines of the message. Characters of a file that would break or hide a line are escaped.
    """

    exit_code = 1

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)

    def __str__(self) -> str:
        return "\n".join(visible(line) for line in self.args)


class ConfigError(TfllmrecError):
    """A setting, a key or a command-line argument is wrong."""

    exit_code = 2


def not_installed(what: str, error: ImportError, extra: str) -> ConfigError:
    """Returns the error for a missing package of one of the extras.

    Args:
      what: What needs the package, such as ``figures need matplotlib``.
      error: The error of the import.
      extra: The extra with the package.
    """
    return ConfigError(f"{what} ({error}): pip install 'tfllmrec[{extra}]'")


class DataError(TfllmrecError):
    """An input file or table cannot be used; the message names the file, row and column if there is one."""

    exit_code = 3


class ModelError(TfllmrecError):
    """A model, run folder or SavedModel cannot be used, or training failed."""

    exit_code = 4


class WriteError(TfllmrecError):
    """A file cannot be written: the disk is full, read-only or broken, or we have no permission for the folder."""

    exit_code = 1
