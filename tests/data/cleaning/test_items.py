import pandas as pd
import pytest
from small_datasets import finding, made

from tfllmrec.columns import ITEM, ORDER
from tfllmrec.data import CleaningReport, dataset_from_frames
from tfllmrec.text.template import ItemTemplate


def catalogue(**columns):
    items = pd.DataFrame({"item_id": [f"i{i}" for i in range(len(next(iter(columns.values()))))], **columns})
    return dataset_from_frames(pd.DataFrame({"user": ["u"], "item": ["i0"]}), items)


def test_items_are_unique_clean_strings_in_order_of_id():
    items = pd.DataFrame(
        {
            "asin": ["b", "a", "b", ""],
            "name": ["<i>B</i> &amp; co", None, "again", "nobody"],
            "overview": [["one", "two"], "nan", "", ""],
            "genres": [["X", "Y"], "Z|W", "", ""],
            "price": [1.5, 2.0, None, None],
            "also": [["q", "r"], None, None, None],
        }
    )
    data = made([("u", "a", 1, 1), ("u", "new", 1, 2)], items=items)
    assert data.items.columns.tolist() == ["item_id", "title", "description", "categories", "also", "price"]
    assert data.items.iloc[0].tolist() == ["a", "", "nan", "Z|W", "", "2"]
    assert data.items.iloc[1].tolist() == ["b", "B & co", "one two", "X|Y", "q, r", "1.5"]
    assert data.items.iloc[2].tolist() == ["new", "", "", "", "", ""]
    assert [str(t) for t in data.items.dtypes] == ["str"] * 6
    assert finding(data, "the item_id occurs again").count == 1
    assert finding(data, "HTML in title").count == 1
    assert finding(data, "no item_id").count == 1
    assert finding(data, "only in the events").action == "added"
    assert finding(data, "no text in").count == 1
    assert finding(data, "no usable title").count == 2
    assert data.report.rows_in["items"] == 4 and data.report.rows_kept["items"] == 2
    assert data.events.item_index.tolist() == [0, 2]


def test_ids_are_in_natural_order():
    ids = ["10", "9", "i2", "i10", "é", "1", "100"]
    data = made([(i, i, 1, 1) for i in ids])
    assert data.items.item_id.tolist() == data.users.user_id.tolist() == ["1", "9", "é", "10", "i2", "100", "i10"]


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]])
def test_of_several_rows_with_one_id_the_fullest_stays(order):
    items = pd.DataFrame(
        {
            "item": ["a", "a", "a", "b", "b"],
            "title": ["Ant", "", "Ant", "Bee", "Bug"],
            "description": ["long and full", "x", "", "", ""],
            "price": ["", "1", "2", "", ""],
        }
    ).iloc[order]
    data = made([("u", "a", 1, 1)], items=items)
    # Two cells each: the one with more characters. As many characters, too: the one that sorts first.
    assert data.items[["title", "description", "price"]].to_numpy().tolist() == [
        ["Ant", "long and full", ""],
        ["Bee", "", ""],
    ]
    assert finding(data, "the item_id occurs again (kept: the row with the most filled cells)").count == 3


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]])
def test_of_several_rows_with_one_user_the_fullest_stays(order):
    users = pd.DataFrame({"user": list("uuvvww"), "age": ["", "3", "4", "4", "9", "10"]}).iloc[order]
    data = dataset_from_frames(pd.DataFrame({"user": list("uvw"), "item": list("abc")}), users=users)
    assert data.users.age.tolist() == ["3", "4", "10"]
    assert data.report.dropped("users") == 3


def test_users_without_events_are_dropped_and_strangers_added():
    users = pd.DataFrame({"user_id": ["idle", "v"], "age": [30, 40]})
    data = dataset_from_frames(pd.DataFrame({"user": ["u", "v"], "item": ["a", "b"]}), users=users)
    assert data.users.to_dict("list") == {"user_id": ["u", "v"], "age": ["", "40"]}
    assert data.events.user_id.tolist() == ["u", "v"] and data.events.user_index.tolist() == [0, 1]
    assert data.report.rows_in["users"] == 2 and data.report.rows_kept["users"] == 1
    assert data.report.dropped("users") == 1


def test_report_round_trip_and_lines():
    report = made([("u", "a", "x", 1e9), ("u", "b", 1, 1e9 + 1), ("u", "c", 2, 1e9 + 2)]).report
    assert CleaningReport.from_dict(report.as_dict()) == report
    plain = report.as_dict()
    del plain["sources"], plain["tied_users"]  # reports saved before there were any
    assert CleaningReport.from_dict(plain).sources == [] and CleaningReport.from_dict(plain).tied_users == 0
    assert report.lines() == [
        "events: events table (user_id <- user, item_id <- item, rating <- rating, timestamp_s <- timestamp; "
        "ordered by timestamp_s)",
        "events: 3 rows read, 3 kept",
        "  events: 1 repaired: the rating is not a number: taken as unknown (events table:0, column 'rating': 'x')",
    ]


def test_columns_of_an_empty_order_do_not_count():
    data = made([("u", "a", None, 2), ("u", "b", None, 1)], f"user {ITEM} {ORDER} timestamp")
    assert data.ordered and data.events.item_id.tolist() == ["b", "a"]


def test_doubts_are_the_last_lines_of_the_report():
    report = CleaningReport({"events": 3}, {"events": 3})
    report.add("events", "odd order", 2, "doubted", "e.csv:7")
    report.add("events", "HTML", 1, "repaired")
    assert report.doubts() == ["odd order (e.csv:7)"]
    assert report.lines()[1:] == ["  events: 1 repaired: HTML", "warning: odd order (e.csv:7)"]


def test_names_of_records_in_every_column():
    records = [{"id": 16, "name": "Animation"}, {"id": 35, "name": "Comedy"}]
    written = [str(records), str(records), str(records)]
    data = catalogue(
        title=["A", "B", "C"],
        categories=[records, records, None],
        tags=written,
        authors=[[{"author_id": 1, "name": "Ann, Lee"}], "Bo", ""],
        production_companies=written,
        cast=[records, None, records],
        details=[{"pages": "9"}, None, None],
    )
    assert data.items.categories.tolist() == ["Animation|Comedy", "Animation|Comedy", ""]
    assert data.items.tags.tolist() == ["Animation|Comedy"] * 3
    assert data.items.authors.tolist() == ["Ann, Lee", "Bo", ""]
    assert data.items.production_companies.tolist() == ["Animation, Comedy"] * 3
    assert data.items["cast"].tolist() == ["Animation, Comedy", "", "Animation, Comedy"]
    assert data.items.details[0] == '{"pages": "9"}'


def test_paragraphs_in_a_string_are_text():
    data = catalogue(title=["[REC]", "['A', 'b']"], description=["['One.', 'Two.']", '[{"text": "One."}]'])
    assert data.items.title.tolist() == ["[REC]", "A b"]
    assert data.items.description.tolist() == ["One. Two.", "One."]


def test_what_commas_were_taken_for_is_told():
    arts = "Arts, Music & Photography"
    data = catalogue(categories=[arts, arts, "Books"], brand=["Ann, Bo", "Ann", "Bo"])
    assert data.items.categories.tolist() == [arts, arts, "Books"]
    assert data.items.brand[0] == "Ann|Bo"
    belong = finding(data, "categories: commas are taken to belong to the names")
    assert (belong.count, belong.action) == (2, "kept")
    assert belong.example == f"items table:0, column 'categories': {arts!r}"
    assert finding(data, "brand: commas are taken to separate names").count == 1
    assert finding(catalogue(brand=["a/b", "a/c", "d/b"]), "slashes are taken to separate").count == 3


def test_names_that_are_left_out_are_counted():
    data = catalogue(categories=[[{"id": 3}], "null", "Books", "", None, [], ["Books", "N/A"]])
    assert data.items.categories.tolist() == ["", "", "Books", "", "", "", "Books"]
    assert finding(data, "records without a name").count == 3


def test_titles_may_be_words_for_nothing():
    titles = ["None", "null", "NaN", "nan", "N/A", "NA", "Untitled", None, "", "\\N"]
    data = catalogue(title=titles)
    assert data.items.title.tolist() == [*titles[:7], "", "", ""]
    data = catalogue(title=[*titles, "nan", "nan"], description=["unknown"] * 6 + ["None"] + ["d"] * 5)
    assert data.items.title.tolist() == [*titles[:3], "", *titles[4:7], "", "", "", "", ""]
    assert data.items.description.tolist() == [""] * 6 + ["None"] + ["d"] * 5
    assert finding(data, "title is a word for nothing").count == 3
    assert finding(data, "description is a word for nothing").count == 6


def test_unusable_titles_are_counted():
    data = catalogue(title=["A", "https://x.org/1", "i2", "$3.99"], description=["", "d", "", ""])
    found = finding(data, "no usable title")
    assert (found.count, found.action, found.example) == (3, "kept", "'i1'")
    assert data.items.title[1] == "https://x.org/1"  # what encoders read does not change


def test_a_catalogue_whose_text_is_in_columns_of_other_names_is_told():
    items = pd.DataFrame({"id": ["a", "b"], "Bezeichnung": ["Stuhl", "Tisch"], "Preis": ["5", "7"]})
    told = finding(
        made([("u", "a"), ("u", "b")], "user item", items), "the catalogue has no column recognised as title"
    )
    assert (told.count, told.action) == (2, "kept")
    assert (
        "if one of 'Bezeichnung', 'Preis' holds them, map it so that models can read it: --set data.columns.title="
        in told.what
    )
    assert not made([("u", "a"), ("u", "b")], "user item", items[["id"]]).report.findings


def test_a_match_of_small_integers_is_doubted():
    films = pd.DataFrame({"item_id": range(1, 1001), "title": "t"})
    books = pd.DataFrame({"user": "u", "item": range(1, 31)})
    found = finding(dataset_from_frames(books, films), "may be the catalogue of other events")
    assert (found.count, found.action) == (30, "kept")
    assert "only 30 of the 1,000 items of the catalogue have events (3.0%)" in found.what
    data = dataset_from_frames(books, films[:30])
    assert not any("may be the catalogue" in found.what for found in data.report.findings)


def test_encoders_read_what_they_read_when_commas_separated_names():
    data = catalogue(
        title=["Toy Story (1995)", "Concealer", "Mixed"],
        categories=["Animation|Children's|Comedy", [["Beauty", "Makeup"], ["Beauty", "Face"]], "a; b, c"],
        authors=["", ["Ann Lee", "Bo Roe"], ""],
    )
    assert ItemTemplate.from_items(data.items).texts(data.items) == [
        "Toy Story (1995) (Animation, Children's, Comedy)",
        "Concealer by Ann Lee, Bo Roe (Beauty, Makeup, Face)",
        "Mixed (a, b, c)",
    ]


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "__index_level_0__"])
def test_row_numbers_of_pandas_are_left_out(name):
    items = pd.DataFrame({name: [7, 3], "item_id": ["a", "b"], "title": ["A", "B"]})
    data = made([("u", "a", 1, 1)], items=items)
    assert list(data.items) == ["item_id", "title"]
    assert finding(data, "holds row numbers").count == 2
    data = made([("u", "a", 1, 1)], items=items.assign(**{name: ["7", "x"]}))
    assert list(data.items) == ["item_id", "title", name]


def test_vectors_are_not_searched_for_names(monkeypatch):
    parsed = []
    monkeypatch.setattr("tfllmrec.data.cleaning.items.structured_text", lambda cell, separator: parsed.append(cell))
    catalogue(look=["[0.1, -2e-5]", " (1 2)\n", "[1, 2", "['a']", "[[1, 2], [3]]"])
    assert parsed == ["['a']", "[[1, 2], [3]]"]


@pytest.mark.parametrize("word", ["NULL", "nan", "None", r"\N"])
def test_fields_of_every_table_have_no_value_where_the_file_says_so(word):
    events = pd.DataFrame({"user": ["u", "v"], "item": ["a", "b"], "device": ["phone", word]})
    items = pd.DataFrame({"id": ["a", "b"], "title": ["A", "B"], "colour": ["red", word]})
    users = pd.DataFrame({"user_id": ["u", "v"], "job": ["nurse", word]})
    data = dataset_from_frames(events, items, users)
    for table, column in ((data.events, "device"), (data.items, "colour"), (data.users, "job")):
        assert table[column].tolist()[1] == ""
        told = finding(data, f"column {column!r}: the cell says that there is no value")
        assert (told.count, told.action) == (1, "repaired")


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
@pytest.mark.parametrize("text", ["Schöner Stuhl", "Élite", "Größe", "ÄÖÜ", "»Spaß«", "it’s", "привет", "5 °C"])
def test_text_that_was_read_in_a_wrong_encoding_is_told(text, encoding):
    misread = text.encode().decode(encoding, "replace")
    data = catalogue(title=[misread, text, "ÉTÉ\u00a0: « été »", "»Spaß«", "ÃO", "ÂGE", "Ñandú", "Ð"])
    told = finding(data, "column 'title': UTF-8 text that a program read in another encoding; it is kept as it is")
    assert (told.count, told.action) == (1, "kept")


@pytest.mark.parametrize("column", ["categories", "colour"])
def test_columns_of_names_and_fields_are_searched_for_such_text_too(column):
    data = catalogue(**{column: ["Größe".encode().decode("cp1252"), "Größe"]})
    assert finding(data, f"column {column!r}: UTF-8 text that").count == 1


def test_letters_that_were_lost_are_told():
    told = finding(
        catalogue(title=["Sch\ufffdn", "Schön"]), "column 'title': text whose letters a program replaced by U+"
    )
    assert (told.count, told.action) == (1, "kept")


def test_one_of_several_translations_is_read_and_reported():
    titles = [{"de": "Stuhl", "en": "Chair"}, '{"de": "Tisch", "fr": null}', '{"id": "x", "no": 7}', "{Lamp}"]
    titles += [{"DE": "Bett", "en-US": "Bed"}, '{"en": "Rug"}']
    data = catalogue(title=titles)
    assert data.items.title.tolist() == ["Chair", "Tisch", '{"id": "x", "no": 7}', "{Lamp}", "Bed", "Rug"]
    assert finding(data, "title in several languages: one of them is read, the English one if there is one").count == 4


def test_text_in_a_single_language_stays_unless_other_text_has_several():
    assert catalogue(title=['{"it": "Sedia"}', "Chair"]).items.title.tolist() == ['{"it": "Sedia"}', "Chair"]
