import pytest

from tfllmrec.cli.arguments import ids, open_model
from tfllmrec.errors import ModelError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b", ["a", "b"]),
        (" a , b,", ["a", "b"]),
        ("", []),
        (None, []),
        ("a b", ["a b"]),
        ('a, "b, c",d', ["a", "b, c", "d"]),
        ('"say ""b""",5" disc', ['say "b"', '5" disc']),
        ("a,b\nc\n", ["a", "b", "c"]),
    ],
)
def test_ids(text, expected):
    assert ids(text) == expected


def test_the_saved_model_finds_its_newest_version_itself(libraries, saved_model):
    assert open_model(saved_model) is libraries.models[0]


def test_a_path_that_is_not_there_is_refused_before_anything_is_loaded(libraries, tmp_path):
    libraries.models = None  # opening would fail
    with pytest.raises(ModelError, match="none does not exist"):
        open_model(tmp_path / "none")
