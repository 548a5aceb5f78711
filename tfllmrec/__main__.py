"""``python -m tfllmrec`` is the command line."""

from tfllmrec.cli.app import main

main()
