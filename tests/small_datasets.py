"""Makes data sets of a few rows for tests of reading and cleaning, and looks up findings in their reports."""

import pandas as pd

from tfllmrec.config import DataConfig
from tfllmrec.data import Dataset, dataset_from_frames
from tfllmrec.data.findings import Finding


def made(rows, columns="user item rating timestamp", items=None, **config) -> Dataset:
    """Returns the data set of ``rows``; unreadable rows are dropped, whatever their number."""
    frame = pd.DataFrame(rows, columns=columns.split())
    config.setdefault("max_bad_rows", 1)
    return dataset_from_frames(frame, items, config=DataConfig(**config))


def finding(dataset: Dataset, text: str) -> Finding:
    """Returns the only finding of the report whose message contains ``text``."""
    found = [f for f in dataset.report.findings if text in f.what]
    assert len(found) == 1, dataset.report.lines()
    return found[0]
