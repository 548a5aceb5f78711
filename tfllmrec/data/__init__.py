"""Turns raw logs into a clean Dataset, a leak-checked split, and batches of queries."""

from tfllmrec.data.dataset import Dataset
from tfllmrec.data.findings import CleaningReport, Finding
from tfllmrec.data.queries import Queries, Ragged
from tfllmrec.data.readers import dataset_from_frames, read_dataset, read_ids, read_items
from tfllmrec.data.splits import Split, make_split

__all__ = [
    "CleaningReport",
    "Dataset",
    "Finding",
    "Queries",
    "Ragged",
    "Split",
    "dataset_from_frames",
    "make_split",
    "read_dataset",
    "read_ids",
    "read_items",
]
