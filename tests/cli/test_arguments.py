import pytest

from tfllmrec.cli.arguments import ids, newest_version
from tfllmrec.errors import ModelError


@pytest.mark.parametrize(
    ("text", "expected"), [("a,b", ["a", "b"]), (" a , b,", ["a", "b"]), ("", []), (None, []), ("a b", ["a b"])]
)
def test_ids(text, expected):
    assert ids(text) == expected


def test_newest_version_is_the_highest_whole_number(saved_model):
    assert newest_version(saved_model) == saved_model / "10"  # not "2", which sorts later as text; 11 is not whole


def test_a_version_is_taken_as_it_is(saved_model):
    assert newest_version(saved_model / "2") == saved_model / "2"


def test_a_run_is_no_saved_model_and_says_what_to_do(tmp_path):
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ModelError, match="tfllmrec export"):
        newest_version(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(ModelError, match="no SavedModel"):
        newest_version(tmp_path / "none")
