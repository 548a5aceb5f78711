"""Limits the size of files, which resembles a full disk but needs neither special rights nor a separate disk."""

import contextlib
import resource

#: The limit in bytes. It is far above the size of the files that pytest and TensorFlow write at the same time.
LARGEST_FILE = 1_200_000


@contextlib.contextmanager
def small_files():
    """Keeps files from growing beyond :data:`LARGEST_FILE` in the block; the system raises "File too large"."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
