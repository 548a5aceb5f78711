"""A catalogue, and a folder of versions."""

import pytest
from plain_versions import made_catalogue, write_version


@pytest.fixture(scope="session")
def catalogue():
    return made_catalogue()


@pytest.fixture
def shop(tmp_path):
    """A folder with two versions: 30 items, and five more."""
    write_version(tmp_path / "shop", 1, made_catalogue())
    write_version(tmp_path / "shop", 2, made_catalogue(35))
    return tmp_path / "shop"
