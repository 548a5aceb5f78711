"""A limit on the size of files: of all conditions like a full disk, the one that needs neither rights nor a disk."""

import contextlib
import resource

#: Bytes. It also holds for the files that pytest and TensorFlow write meanwhile, so it is far above their sizes.
LARGEST_FILE = 1_200_000


@contextlib.contextmanager
def small_files():
    """Within the block no file grows beyond :data:`LARGEST_FILE`; the system answers "File too large"."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
