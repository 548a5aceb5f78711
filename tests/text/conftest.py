"""The real bundled BERT, where it can be had."""

import pytest

from tfllmrec import assets
from tfllmrec.errors import DataError


@pytest.fixture(scope="session")
def minilm_weights():
    """The folder of the real weights; skips where no source gives them."""
    try:
        return assets.weights("minilm")
    except DataError as error:
        pytest.skip(f"the MiniLM weights cannot be had: {error}")
