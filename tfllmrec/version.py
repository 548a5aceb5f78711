"""The version of both distributions, ``tfllmrec`` and ``tfllmrec-client``."""

__version__ = "0.1.0"
