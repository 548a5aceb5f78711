"""The rows that an event log has of lists and requests, in the order in which they were written."""

from pathlib import Path

from tfllmrec.data.files.event_log import EXPOSURE_TYPES, EXPOSURES, REQUEST_TYPES, REQUESTS, LogReader
from tfllmrec.feedback.event_log import Exposure, RequestRecord


def shown_in(log: Path, since: int = 0) -> list[Exposure]:
    with LogReader(log) as reader:
        return [Exposure(*row) for page in reader.pages(EXPOSURES, tuple(EXPOSURE_TYPES), since) for row in page]


def requests_in(log: Path) -> list[RequestRecord]:
    with LogReader(log) as reader:
        return [RequestRecord(*row) for page in reader.pages(REQUESTS, tuple(REQUEST_TYPES)) for row in page]
