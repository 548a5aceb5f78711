"""Data sets of a few rows for the tests of reading and cleaning, and how to look up what a report says of them."""

import pandas as pd

from tfllmrec.config import DataConfig
from tfllmrec.data import Dataset, dataset_from_frames
from tfllmrec.data.findings import Finding


def made(rows, columns="user item rating timestamp", items=None, **config) -> Dataset:
    """The data set of ``rows``; unreadable rows are dropped, however many there are."""
    frame = pd.DataFrame(rows, columns=columns.split())
    config.setdefault("max_bad_rows", 1)
    return dataset_from_frames(frame, items, config=DataConfig(**config))


def finding(dataset: Dataset, text: str) -> Finding:
    """The only finding of the report that says ``text``."""
    found = [f for f in dataset.report.findings if text in f.what]
    assert len(found) == 1, dataset.report.lines()
    return found[0]
