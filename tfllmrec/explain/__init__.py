"""What a run is worth: reports of one run or several as a page, model cards, and comparisons with paired intervals.

``compare.py`` compares runs, ``report.py`` writes pages, ``card.py`` the model card, ``board.py`` for TensorBoard.
"""
