"""Presents the results of runs: reports of one or several runs, model cards, and comparisons with paired intervals.

``compare.py`` compares runs, ``report.py`` writes pages, ``card.py`` writes model cards, and ``board.py`` writes data
for TensorBoard.
"""
