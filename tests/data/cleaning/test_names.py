import numpy as np
import pandas as pd
import pytest

from tfllmrec.data.cleaning.names import (
    category_names,
    join_names,
    names_as_text,
    names_in,
    read_name_column,
    structured_text,
)

ANIMATION = ["Animation", "Science Fiction"]


@pytest.mark.parametrize(
    "value",
    [
        ["Animation", "Science Fiction"],
        ("Animation", "Science Fiction"),
        {"Science Fiction", "Animation"},
        np.array(["Animation", "Science Fiction"], dtype=object),
        [["Animation"], ["Animation", "Science Fiction"]],
        np.array([np.array(["Animation"]), np.array(["Science Fiction"])], dtype=object),
        # Records, and what becomes of them in JSON, Python, Java, Ruby and JavaScript.
        [{"id": 16, "name": "Animation"}, {"id": 878, "name": "Science Fiction"}],
        '[{"id": 16, "name": "Animation"}, {"id": 878, "name": "Science Fiction"}]',
        "[{'id': 16, 'name': 'Animation'}, {'id': 878, 'name': 'Science Fiction'}]",
        "[{id=16, name=Animation}, {id=878, name=Science Fiction}]",
        '[{"id"=>16, "name"=>"Animation"}, {"id"=>878, "name"=>"Science Fiction"}]',
        "[Row(id=16, name='Animation'), Row(id=878, name='Science Fiction')]",
        "[Genre(name='Animation'), Genre(name='Science Fiction')]",
        "[{16, Animation}, {878, Science Fiction}]",  # Spark, cast to a string
        "WrappedArray([Animation], [Science Fiction])",
        "Index(['Animation', 'Science Fiction'], dtype='object')",
        "Animation\x02Science Fiction",
        "[{id: 16, name: 'Animation'}, {id: 878, name: 'Science Fiction'}]",
        [{"Id": "16", "Title": "Animation"}, {"Id": "878", "Title": "Science Fiction"}],
        [{"genre_id": 16, "genre": "Animation"}, {"genre_id": 878, "genre": "Science Fiction"}],
        [{"@id": "/g/1", "@type": "Genre", "label": "Animation"}, {"@id": "/g/2", "label": "Science Fiction"}],
        [{"categoryId": 1, "categoryName": "Animation"}, {"categoryId": 2, "categoryName": "Science Fiction"}],
        [{"tag": {"id": 1, "text": "Animation"}}, {"tag": {"id": 2, "text": "Science Fiction"}}],
        [{"name": {"en": "Animation", "de": "Zeichentrick"}}, {"name": {"en": "Science Fiction"}}],
        {"genres": [{"id": 16, "name": "Animation"}, {"id": 878, "name": "Science Fiction"}]},
        {"list": [{"element": "Animation"}, {"element": "Science Fiction"}]},
        {"edges": [{"node": {"name": "Animation"}}, {"node": {"name": "Science Fiction"}}]},
        {"L": [{"M": {"id": {"N": "16"}, "name": {"S": "Animation"}}}, {"S": "Science Fiction"}]},
        # Maps from ids, and counts or flags of names.
        {"/m/0hcr": "Animation", "/m/06n90": "Science Fiction"},
        '{"/m/0hcr": "Animation", "/m/06n90": "Science Fiction"}',
        {"0": "Animation", "1": "Science Fiction"},
        {"Animation": 12, "Science Fiction": 3},
        {"Animation": 12, "Science Fiction": 3, "Drama": None, "War": 0},
        {"Animation": True, "Science Fiction": True, "War": False},
        "{'Animation': 12, 'Science Fiction': 3}",
        "Counter({'Animation': 12, 'Science Fiction': 3})",
        "{Animation=12, Science Fiction=3}",
        [("Animation", 12), ("Science Fiction", 3)],
        [("16", "Animation"), ("878", "Science Fiction")],
        [["Animation", 12], ["Science Fiction", 3]],
        [{"key": "Animation", "value": 12}, {"key": "Science Fiction", "value": 3}],
        [{"key": 16, "value": "Animation"}, {"key": 878, "value": "Science Fiction"}],
        [{"count": "3", "name": "Animation"}, {"count": "2", "name": "Science Fiction"}],
        # Lists in strings.
        '["Animation", "Science Fiction"]',
        "['Animation', 'Science Fiction']",
        "['Animation' 'Science Fiction']",
        "['Animation'\n 'Science Fiction']",
        "array(['Animation', 'Science Fiction'], dtype=object)",
        "['Animation', nan, 'Science Fiction']",
        "('Animation', 'Science Fiction')",
        "{'Animation', 'Science Fiction'}",
        "{Animation,Science Fiction}",
        '{Animation,"Science Fiction",NULL}',
        "{{Animation},{Science Fiction}}",
        "[Animation, Science Fiction]",
        "WrappedArray(Animation, Science Fiction)",
        '"Animation", "Science Fiction"',
        '"[\\"Animation\\", \\"Science Fiction\\"]"',
        ['["Animation", "Science Fiction"]'],
        # Separators.
        "Animation|Science Fiction",
        "Animation; Science Fiction",
        "Animation，Science Fiction",
        "Animation، Science Fiction",
        "Animation, Science Fiction",
        "Animation\nScience Fiction",
        "Animation\tScience Fiction",
        "Animation > Science Fiction",
        "Animation>Science Fiction",
        "Animation >> Science Fiction",
        "Animation › Science Fiction",
        "Animation &gt; Science Fiction",
        "Animation • Science Fiction",
        ["Animation >> Science Fiction"],
        "Animation > Science Fiction, Animation > Science Fiction",
    ],
)
def test_names_in_every_shape(value):
    assert sorted(names_in(value)) == ANIMATION


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ('{"a, b",c}', ["a, b", "c"]),
        ('{"say \\"hi\\"",c}', ['say "hi"', "c"]),
        ("{Star Trek: TNG,Alien}", ["Star Trek: TNG", "Alien"]),
        ("[Children's, Drama]", ["Children's", "Drama"]),
        ({"fantasy, paranormal": 31, "mystery": 5}, ["fantasy, paranormal", "mystery"]),
        ([{"id": 1, "name": "Arts; Crafts, etc."}], ["Arts; Crafts, etc."]),
        (["Arts, Music & Photography"], ["Arts, Music & Photography"]),
        ("Arts, Crafts & Sewing > Kits", ["Arts, Crafts & Sewing", "Kits"]),
        ("Acme, Inc., 1,000 Places", ["Acme, Inc.", "1,000 Places"]),
        ([{"first_name": "Jane", "last_name": "Austen"}], ["Jane Austen"]),
        ([{"given": "Jane", "family": "Austen"}, {"family": "Homer"}], ["Jane Austen", "Homer"]),
        ({"Books": {"Fiction": {}, "Poetry": {}}}, ["Books", "Fiction", "Poetry"]),
        ("Music &amp; Film|Books", ["Music & Film", "Books"]),
        ("Film &amp; TV, Film & TV", ["Film & TV"]),
        (["A", "", None, "</span>", "nan"], ["A"]),
        ("[not a list", ["[not a list"]),
        ('Weird "Al"', ['Weird "Al"']),
        ("<Untitled>", ["<Untitled>"]),
        ("TV -> Film", ["TV -> Film"]),
        ("AC/DC", ["AC/DC"]),
        ([16, 35], ["16", "35"]),
        (7, ["7"]),
    ],
)
def test_names_are_whole(value, names):
    assert names_in(value) == names


@pytest.mark.parametrize(
    "value",
    [None, float("nan"), pd.NA, "", "nan", "\\N", "N/A", "(no genres listed)", [], "[]", "{}", "set()", "[nan]",
     [{"id": 5}], [{"author_id": "604031", "role": ""}], [{"author": {"key": "/authors/OL23919A"}}]],
)  # fmt: skip
def test_no_name(value):
    assert names_in(value) == []


def test_a_cell_keeps_names_apart():
    names = ["Arts, Music & Photography", "Books", "Books"]
    cell = join_names(names)
    assert category_names(cell) == names[:2] and category_names("") == []
    assert names_as_text(cell) == "Arts, Music & Photography, Books"


def column(cells, known=()):
    read = read_name_column(pd.Series(cells, dtype=object), known)
    return [category_names(cell) for cell in read.cells], read


ARTS = "Arts, Music & Photography"


@pytest.mark.parametrize(
    "cells",
    [
        [ARTS, ARTS, "Books", "Home, Garden and Tools"],
        ["Home", "Home, Kitchen", "Home, Kitchen"],  # one part occurs elsewhere, the other does not
        [ARTS, "Books|Music", "Toys|Games"],
        [ARTS, "Books > Novels", "Toys > Games"],
        [ARTS, ["Books", "Music"], ["Toys"]],
        [ARTS, "['Books']", "['Books', 'Toys']"],
        [ARTS, "Patio, Lawn & Garden", "Books"],  # nothing recurs, but these are enumerations
        ["Acme, Inc.", "Bolt, Ltd", "Cog, GmbH"],
    ],
)
def test_commas_that_belong_to_names(cells):
    names, read = column(cells)
    assert names[0] == [cells[0]]
    assert not read.split_at_commas or not read.commas.any()


@pytest.mark.parametrize(
    "cells",
    [
        ["Drama, Romance", "Drama", "Romance, War", "War"],
        ["Drama, Romance"] * 5 + ["Drama, War", "Romance, War"],
        ["contemporary,ya-lit", "fantasy,ya-lit", "contemporary"],
        ["J.K. Rowling, Mary GrandPré", "J.K. Rowling", "Stephen King"],
        ["one, two", "three, four"],  # nothing recurs
    ],
)
def test_commas_that_separate_names(cells):
    names, read = column(cells)
    assert names[0] == [part.strip() for part in cells[0].split(",")]
    assert read.split_at_commas and read.commas.tolist() == ["," in cell for cell in cells]


def test_known_names_decide_where_a_column_cannot():
    assert column(["Drama, Romance"])[0] == [["Drama", "Romance"]]
    assert column(["Drama, Romance"], {"Drama, Romance"})[0] == [["Drama, Romance"]]
    assert column([ARTS])[0] == [[ARTS]]
    assert column([ARTS], {"Arts", "Music & Photography"})[0] == [["Arts", "Music & Photography"]]
    # A known name is whole, whatever the rest of the column is.
    assert column(["Drama, War", "Drama", "War", ARTS], {ARTS})[0] == [["Drama", "War"], ["Drama"], ["War"], [ARTS]]


def test_slashes_separate_in_paths_only():
    paths = ["Women/Tops/Blouse", "Women/Tops/Shirt", "Men/Shoes/Boots", "Men/Shoes/Sandals"]
    names, read = column(paths)
    assert names[0] == ["Women", "Tops", "Blouse"] and read.slashes.all()
    for cells in (["TV/Film", "Books", "Music"], ["AC/DC", "Nirvana", "M/A/R/R/S"], ["TV/Film", "TV", "Film", "Film"]):
        assert column(cells)[0] == [[cell] for cell in cells]


def test_what_was_left_out_is_marked():
    cells = ["Drama", "null", [{"id": 3}], [], None, "\\N", ["Drama", "None"], "(no genres listed)"]
    _, read = column(cells)
    assert read.nameless.tolist() == [False, True, True, False, False, False, True, True]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([{"id": 1, "name": "Pixar"}, {"id": 2, "name": "Fox|Searchlight"}], "Pixar, Fox|Searchlight"),
        ("[{'id': 1, 'name': 'Pixar'}]", "Pixar"),
        ("['a' 'b']", "a, b"),
        ({"id": 31, "name": "Tom Hanks"}, "Tom Hanks"),
        (["a", "a", ""], "a, a"),
        ({"Pages": "96", "Publisher": "X"}, {"Pages": "96", "Publisher": "X"}),  # attributes
        ("[REC]", "[REC]"),
        ("(500) Days of Summer", "(500) Days of Summer"),
        ("[1408]", "[1408]"),
        ([0.1, 0.2], [0.1, 0.2]),
        (7.0, 7.0),
    ],
)
def test_structured_text(value, text):
    assert structured_text(value, ", ") == text


@pytest.mark.parametrize(
    "value",
    [
        *("[np.str_('Drama'), np.str_('War')]", 'c("Drama", "War")', "Drama^War", "Drama、War", "- Drama\n- War"),
        *("<genres><genre>Drama</genre><genre>War</genre></genres>", "<ul><li>Drama</li><li>War</li></ul>"),
        *("Drama<br>War", 'a:2:{i:0;s:5:"Drama";i:1;s:3:"War";}', r"[\"Drama\", \"War\"]"),
        "[OrderedDict([('id', 16), ('name', 'Drama')]), OrderedDict([('id', 3), ('name', 'War')])]",
        {"v": [{"v": "Drama"}, {"v": "War"}]},
        {"data": [{"id": 1, "attributes": {"name": "Drama"}}, {"id": 2, "attributes": {"name": "War"}}]},
    ],
)
def test_names_as_further_exporters_write_them(value):
    assert names_in(value) == ["Drama", "War"]


@pytest.mark.parametrize("name", ["C (programming)", "Sci-Fi - Classic", "I <3 NY", "<b>Drama</b>"])
def test_names_that_only_look_like_lists(name):
    assert names_in(name) == [name.replace("<b>", "").replace("</b>", "")]
