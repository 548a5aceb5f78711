import functools
import gzip
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from small_datasets import finding

from tfllmrec.columns import ITEM_INDEX, RATING, TIMESTAMP
from tfllmrec.config import DataConfig, SplitConfig
from tfllmrec.data import dataset_from_frames, make_split, read_dataset, read_ids, read_items
from tfllmrec.errors import ConfigError, DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"
shared = pytest.mark.skipif(not SHARED.exists(), reason=f"no shared data sets at {SHARED}")

#: Without the time: contents are parts of names of tests, which all workers must find the same.
gzipped = functools.partial(gzip.compress, mtime=0)


def write(folder, **files):
    """Writes files whose names come as ``ratings_csv`` for ``ratings.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", "-").replace("_", ".")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read(folder, **config):
    config.setdefault("source", "." if "events" not in config else None)
    return read_dataset(DataConfig(**config), folder)


def events_of(data):
    return list(zip(data.events.user_id, data.events.item_id, strict=True))


def example(data, text):
    found = finding(data, text)
    return found.count, found.example


# --- Formats ---------------------------------------------------------------------------------------------------------

U_ITEM = "1|Toy Story (1995)|01-Jan-1995||http://x|0|0|0|1|1|1" + "|0" * 13 + "\n"
U_ITEM_2 = "2|Misérables, Les (1995)|01-Jan-1995||http://y|1" + "|0" * 18 + "\n"


def ml_100k(folder):
    return write(
        folder,
        u_data="196\t2\t3\t881250949\n186\t1\t4\t891717742\n196\t1\t5\t881250950\n",
        u_item=(U_ITEM + U_ITEM_2).encode("latin-1"),
        u_user="186|39|F|executive|00000\n196|49|M|writer|55105\n",
        u_genre="unknown|0\nAction|1\nAdventure|2\nAnimation|3\nChildren's|4\nComedy|5\n"
        + "".join(f"G{i}|{i}\n" for i in range(6, 19)),
    )


def test_movielens_100k(tmp_path):
    data = read(ml_100k(tmp_path), name="small")
    assert data.name == "small" and data.ordered
    assert data.users.to_dict("list") == {
        "user_id": ["186", "196"],
        "age": ["39", "49"],
        "gender": ["F", "M"],
        "occupation": ["executive", "writer"],
        "zip_code": ["00000", "55105"],
    }
    assert data.items.title.tolist() == ["Toy Story (1995)", "Misérables, Les (1995)"]
    assert data.items.categories.tolist() == ["Animation|Children's|Comedy", ""]
    assert data.items.columns.tolist() == [
        *("item_id", "title", "categories", "imdb_url", "release_date", "video_release_date")
    ]
    assert events_of(data) == [("186", "1"), ("196", "2"), ("196", "1")]
    assert data.events[RATING].tolist() == [4, 3, 5]
    assert data.events[TIMESTAMP].tolist() == [891717742, 881250949, 881250950]


def test_movielens_in_the_only_subfolder_and_without_genre_file(tmp_path):
    ml_100k(tmp_path / "ml-100k")
    (tmp_path / "ml-100k" / "u.genre").unlink()
    (tmp_path / "archive.zip").write_bytes(b"PK")
    data = read(tmp_path, format="movielens")
    assert data.items.categories[0] == "Animation|Children's|Comedy"


def test_movielens_1m(tmp_path):
    write(
        tmp_path,
        ratings_dat="1::2::5::978300760\n1::1::3::978302109\n",
        movies_dat="1::Toy Story (1995)::Animation|Comedy\n2::Café: The End (1999)::Drama\n".encode("latin-1"),
        users_dat="1::F::1::10::48067\n",
    )
    data = read(tmp_path)
    assert data.items.title.tolist() == ["Toy Story (1995)", "Café: The End (1999)"]
    assert data.items.categories.tolist() == ["Animation|Comedy", "Drama"]
    assert data.users.columns.tolist() == ["user_id", "age", "gender", "occupation", "zip_code"]
    assert events_of(data) == [("1", "2"), ("1", "1")]
    assert data.report.findings == []  # Latin-1 is what these files are documented to be: no repair


def test_movielens_10m_is_utf8(tmp_path):
    write(tmp_path, ratings_dat="1::1::5::978300760\n", movies_dat="1::Café::Drama\n")
    assert read(tmp_path).items.title.tolist() == ["Café"]


def test_movielens_csv_with_tags(tmp_path):
    write(
        tmp_path,
        ratings_csv="userId,movieId,rating,timestamp\n1,1,4.0,964982703\n1,2,0.5,964981247\n",
        movies_csv='movieId,title,genres\n1,"American President, The (1995)",Comedy|Drama\n2,Heat,(no genres listed)\n',
        tags_csv="userId,movieId,tag,timestamp\n"
        + "1,1,slow,1\n1,1,funny,1\n2,1,Funny,2\n3,9,lost,3\n3,1,,4\n"
        + "".join(f"4,2,t{i},5\n" for i in range(25)),
    )
    data = read(tmp_path)
    assert data.items.title[0] == "American President, The (1995)"
    assert data.items.categories.tolist() == ["Comedy|Drama", ""]
    assert "tags" not in data.items
    assert data.tags.user_id.tolist() == ["1", "1", "2", *["4"] * 25]
    assert data.tags.tag.tolist()[:3] == ["funny", "slow", "Funny"] and data.tags.timestamp_s.tolist()[:3] == [1, 1, 2]
    assert example(data, "the tagged item is not in the catalogue") == (1, "tags.csv:5, column 'movieId': '9'")
    assert example(data, "no tag")[0] == 1
    assert data.report.rows_in["tags"] == 30 and data.report.rows_kept["tags"] == 28


def test_recbole_atomic_files(tmp_path):
    write(
        tmp_path,
        ml__x_inter="user_id:token\titem_id:token\trating:float\ttimestamp:float\nu\ta\t4.0\t10\nu\tb\t1.0\t5\n",
        ml__x_item="item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        'a\t"Ant" Man\t1999\tSci-Fi War\n',
        ml__x_user="user_id:token\tage:token\nu\t7\n",
        ml__x_kg="ignored\n",
    )
    data = read(tmp_path)
    assert events_of(data) == [("u", "b"), ("u", "a")]
    assert data.items.iloc[0].to_dict() == {
        "item_id": "a",
        "title": '"Ant" Man',
        "categories": "Sci-Fi|War",
        "release_year": "1999",
    }
    assert data.users.age.tolist() == ["7"]


def test_recbole_quoted_token_sequences(tmp_path):
    write(tmp_path, a_inter="user_id:token\titem_id:token\nu\ta\n")
    write(tmp_path, a_item="item_id:token\tcategories:token_seq\na\t'Beauty', 'Hair Care'\n")
    assert read(tmp_path, format="recbole").items.categories.tolist() == ["Beauty|Hair Care"]


TABLE = pd.DataFrame({"user": ["u", "u", "v"], "item": ["1", "2", "1"], "stars": [5, 4, 3], "time": [3, 1, 2]})


def as_csv(frame, separator):
    return frame.to_csv(index=False, sep=separator).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("e.csv", as_csv(TABLE, ",")),
        ("e.csv", as_csv(TABLE, ";")),
        ("e.tsv", as_csv(TABLE, "\t")),
        ("e.txt", as_csv(TABLE, "|")),
        ("e", as_csv(TABLE, ",")),
        ("e.csv", as_csv(TABLE, ",").replace(b"\n", b"\r\n")),
        ("e.csv", as_csv(TABLE, ",").replace(b"\n", b"\r")),
        ("e.csv", b"\xef\xbb\xbf" + as_csv(TABLE, ",")),
        ("e.csv", as_csv(TABLE, ",").decode().encode("utf-16")),
        ("e.csv.gz", gzipped(as_csv(TABLE, ","))),
        ("e.jsonl", TABLE.to_json(orient="records", lines=True).encode()),
        ("e.json", TABLE.to_json(orient="records").encode()),
        ("e", TABLE.to_json(orient="records", lines=True).encode()),
        ("e.jsonl.gz", gzipped(TABLE.to_json(orient="records", lines=True).encode())),
        ("e.json", "\n".join(map(str, TABLE.to_dict("records"))).encode()),  # Python literals
    ],
)
def test_every_table_format(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    data = read(tmp_path, events=name)
    assert events_of(data) == [("u", "2"), ("u", "1"), ("v", "1")]
    assert data.events[RATING].tolist() == [4, 5, 3]
    assert data.events[TIMESTAMP].tolist() == [1, 3, 2]
    assert data.report.rows_in == data.report.rows_kept == {"events": 3}


def test_parquet_keeps_large_ids_and_reads_dates(tmp_path):
    frame = pd.DataFrame(
        {
            "user_id": pd.array([2**53 + 1, None, 7], dtype="Int64"),
            "item_id": [1, 2, 3],
            "date": pd.to_datetime(["2014-02-26", "2014-02-26", "2014-02-27"]),
            "rating": pd.array([1, None, 3], dtype="Int32"),
        }
    )
    # Without the metadata of pandas, as another program would write it.
    parquet.write_table(pa.Table.from_pandas(frame).replace_schema_metadata(None), tmp_path / "events.parquet")
    pd.DataFrame({"item_id": [1, 3], "categories": [["A", "B"], None]}).to_parquet(tmp_path / "items.parquet")
    data = read(tmp_path, max_bad_rows=0.5)
    assert events_of(data) == [("7", "3"), ("9007199254740993", "1")]
    assert data.events[TIMESTAMP].tolist() == [1393372800 + 86400, 1393372800]
    assert data.items.categories.tolist() == ["A|B", ""]


BIG_IDS = [76561197970982401, 76561197970982402, 76561197970982403, None]  # equal as float64


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.uint64(), pa.int64(), pa.decimal128(20, 0), pa.string(), pa.large_string()),
        *(pa.dictionary(pa.int32(), pa.int64()), pa.dictionary(pa.int8(), pa.string())),
    ],
    ids=str,
)
def test_parquet_keeps_every_digit_of_ids(tmp_path, kind):
    values = getattr(kind, "value_type", kind)
    ids = pa.array([str(i) if i and "string" in str(values) else i for i in BIG_IDS], values)
    ids = ids.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else ids
    table = pa.table({"user_id": ids, "item_id": ids.take(pa.array([2, 1, 0, 0])), "time": [1e9, 1e9, 1e9, 1e9]})
    parquet.write_table(table, tmp_path / "events.parquet")
    data = read(tmp_path, max_bad_rows=1)
    assert data.events.user_id.tolist() == [str(i) for i in BIG_IDS[:3]]
    assert data.events.item_id.tolist() == [str(i) for i in BIG_IDS[2::-1]]


def test_parquet_lists_of_items(tmp_path):
    lists = pa.array([[BIG_IDS[1], BIG_IDS[0]], [7]], pa.list_(pa.int64()))
    parquet.write_table(pa.table({"user_id": ["u", "u"], "item_id": lists, "rating": [5, 3]}), tmp_path / "e.parquet")
    data = read(tmp_path, events="e.parquet")
    assert data.events.item_id.tolist() == [str(BIG_IDS[1]), str(BIG_IDS[0]), "7"]
    assert data.events[RATING].tolist() == [5, 5, 3]


def test_json_keeps_every_digit_of_ids(tmp_path):
    write(tmp_path, events_jsonl="\n".join(json.dumps({"user_id": i, "item_id": f"{i}"}) for i in BIG_IDS))
    data = read(tmp_path, events="events.jsonl", max_bad_rows=1)
    assert data.events.user_id.tolist() == data.events.item_id.tolist() == [str(i) for i in BIG_IDS[:3]]


@pytest.mark.parametrize(
    ("name", "content", "row"),
    [
        ("e.jsonl", '{"user_id": 7.65619797e16, "item_id": "a"}\n', 1),
        ("e.csv", "user_id,item_id\n1,a\n7.65611979709824e+16,a\n", 3),
        ("e.csv", "user_id,item_id\n7.65612E+16,a\n", 2),
        ("e.csv", "user_id,item_id\n76561197970982400.0,a\n", 2),
    ],
)
def test_ids_that_are_rounded_floats_are_refused(tmp_path, name, content, row):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=rf"{name}:{row}, column 'user_id': .*is a rounded number.*data\.inexact_ids"):
        read(tmp_path, events=name)
    assert read(tmp_path, events=name, inexact_ids="accept").n_items == 1


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ("reviewerID,asin,overall,unixReviewTime,reviewTime", True),
        ("userId,movieId,rating,timestamp,x", True),
        ("uid,product_id,score,date,x", True),
        ("User ID,Item ID,Stars,Time,x", True),
        ("User-ID,ISBN,Book-Rating,Date,x", True),
        ("who,what,rating,time,x", False),
    ],
)
def test_usual_column_names(tmp_path, columns, found):
    write(tmp_path, events_csv=f'{columns}\nu,a,5,1393372800,"02 26, 2014"\nu,b,4,1393372801,"02 26, 2014"\n')
    if found:
        data = read(tmp_path)
        assert events_of(data) == [("u", "a"), ("u", "b")]
        assert (data.events[RATING][0], data.events[TIMESTAMP][0]) == (5, 1393372800)
    else:
        with pytest.raises(DataError, match=r"events\.csv: no column for user_id"):
            read(tmp_path)


def test_letters_of_every_script_are_part_of_a_column_name_and_accents_are_not(tmp_path):
    write(tmp_path, events_csv="user,item\nu,7\n", items_csv="类别ID,Ítem ID,Catégories\n1,7,Lampes\n")
    data = read(tmp_path)
    assert data.items.to_dict("records") == [{"item_id": "7", "categories": "Lampes", "类别ID": "1"}]


@pytest.mark.parametrize(
    ("columns", "item", "title"),
    [
        ("id,product,price", "1", "Lamp"),
        ("Id,item,price", "1", "Lamp"),
        ("product_id,product,price", "1", "Lamp"),
        ("sku,item,id", "1", "Lamp"),
        ("id,movie,title", "1", "5"),
        ("price,product,cost", "Lamp", None),
    ],
)
def test_an_id_goes_before_a_bare_word_which_may_be_the_name(tmp_path, columns, item, title):
    write(tmp_path, events_csv=f"user,product\nu,{item}\n", items_csv=f"{columns}\n1,Lamp,5\n")
    data = read(tmp_path)
    assert data.items.item_id.tolist() == [item]
    assert data.items.get("title", pd.Series([None])).tolist() == [title]


def test_of_users_too_an_id_goes_before_a_bare_word(tmp_path):
    write(tmp_path, events_csv="user,item,id,session_id\n7,a,1,s\n", users_csv="user_name,id,age\nAda,7,36\n")
    assert read(tmp_path).users.to_dict("records") == [{"user_id": "7", "user_name": "Ada", "age": "36"}]


def test_a_catalogue_of_other_ids_is_refused(tmp_path):
    write(tmp_path, events_csv="user,product_id\nu,17\nu,18\n", items_csv="sku,name,code\nx1,Lamp,17\nx2,Desk,18\n")
    expected = (
        r"No item of events\.csv \(column 'product_id', such as '17'\) "
        r"is in items\.csv \(column 'sku', such as 'x1'\): .*"
        r"data\.columns: \{item_id: NAME IN THE FILE\}; other columns of items\.csv: 'name', 'code'\."
    )
    with pytest.raises(DataError, match=expected):
        read(tmp_path)
    data = read(tmp_path, columns={"item_id": "code"})
    assert data.items.title.tolist() == ["Lamp", "Desk"]
    write(tmp_path, items_csv="sku,name\n,Lamp\n")
    with pytest.raises(DataError, match=r"is in items\.csv \(column 'sku', which has none\)"):
        read(tmp_path, max_bad_rows=1)


def test_users_of_other_ids_are_refused(tmp_path):
    write(tmp_path, events_csv="user,item\n7,a\n8,a\n", users_csv="user_id,number,age\nx1,7,30\nx2,8,40\n")
    expected = (
        r"No user of events\.csv \(column 'user', such as '7'\) is in users\.csv \(column 'user_id', such as 'x1'\): .*"
        r"data\.columns: \{user_id: NAME IN THE FILE\}; other columns of users\.csv: 'number', 'age'\."
    )
    with pytest.raises(DataError, match=expected):
        read(tmp_path)
    assert read(tmp_path, columns={"user_id": "number"}).users.age.tolist() == ["30", "40"]
    write(tmp_path, users_csv="user_id,age\n007,30\n008,40\n")
    with pytest.raises(
        DataError, match="2 of them differ from ids of the users in leading zeros only, such as '7' and"
    ):
        read(tmp_path)
    write(tmp_path, users_csv="user_id,age\n007,30\n8,40\n")
    told = finding(read(tmp_path), "only in the events, not in the file of users; 1 of them differ")
    assert (told.count, told.action) == (1, "added")


@pytest.mark.parametrize(("listed", "told"), [(1, True), (2, False), (3, False)])
def test_a_catalogue_of_few_of_the_items_is_told(tmp_path, listed, told):
    write(tmp_path, events_csv="user,item\nu,0\nv,0\nu,1\nu,2\nu,3\n")
    write(tmp_path, items_csv="id,title\n" + "".join(f"{i},T\n" for i in range(listed)))
    data = read(tmp_path)
    [found] = [f for f in data.report.findings if "only in the events" in f.what]
    assert (found.count, found.action) == (4 - listed, "added")
    assert found.example == f"events.csv, column 'item': '{listed}'"
    assert ("items.csv has fewer than half of the 4 items of events.csv" in found.what) == told
    assert ("'id' or 'item', is the wrong one, map it: data.columns: {item_id:" in found.what) == told


def test_what_was_recognised_is_told_and_saved(tmp_path):
    write(tmp_path, ratings_csv="userId,movieId,rating,timestamp\n1,1,4,2\n1,2,5,1\n")
    write(tmp_path, movies_csv="movieId,name,price\n1,Heat,9\n2,Seven,9\n", tags_csv="userId,movieId,tag\n1,1.0,slow\n")
    write(tmp_path, more_csv="movieId,genres\n1,War\n", users_csv=",id\n0,1\n")
    data = read(tmp_path, more_items=["more.csv"], users="users.csv")
    assert data.report.sources == [
        "events: ratings.csv (user_id <- userId, item_id <- movieId, rating <- rating, timestamp_s <- timestamp; "
        "ordered by timestamp_s)",
        "items: movies.csv (item_id <- movieId, title <- name; other columns: price)",
        "more_items: more.csv (item_id <- movieId, categories <- genres)",
        "users: users.csv (user_id <- id; other columns: '')",
        "tags: tags.csv (user_id <- userId, item_id <- movieId, tag <- tag)",
    ]
    assert data.report.lines()[:5] == data.report.sources
    assert data.tags.iloc[0].tolist()[:3] == ["1", "1", "slow"]
    assert example(data, "an integer written as a float") == (1, "tags.csv:2, column 'movieId': '1.0'")
    data.save(tmp_path / "saved")
    assert read(tmp_path, source="saved").report.sources == data.report.sources


def test_column_mapping(tmp_path):
    write(
        tmp_path,
        events_csv="who,what,item,stars\nu,a,9,5\n",
        items_csv="what,title,original_title\na,Wrong,Right\n",
    )
    data = read(tmp_path, columns={"user_id": "who", "item_id": "what", "title": "original_title"})
    assert events_of(data) == [("u", "a")]
    assert data.items.to_dict("records") == [{"item_id": "a", "title": "Right", "source_title": "Wrong"}]


def test_a_mapped_column_is_not_taken_by_its_usual_name_as_well(tmp_path):
    write(tmp_path, events_csv="user,item\nu,1\n")
    with pytest.raises(DataError, match="no column for item_id"):
        read(tmp_path, columns={"rating": "item"})


def test_wrong_mappings(tmp_path):
    write(tmp_path, events_csv="user,item,stars\nu,a,5\n")
    with pytest.raises(ConfigError, match=r"'userid' is not a column.*nearest: 'user_id'"):
        read(tmp_path, columns={"userid": "user"})
    with pytest.raises(DataError, match=r"maps rating to 'starz', which no file.*nearest: 'stars'"):
        read(tmp_path, columns={"rating": "starz"})
    write(tmp_path, events_csv="person,item\nu,a\n")
    with pytest.raises(
        DataError, match=r"no column for user_id\. Expected one named persn \(nearest: 'person'\); found"
    ):
        read(tmp_path, columns={"user_id": "persn"})


@pytest.mark.parametrize("opinions", [("👍", "👎"), ("good", "bad"), ("gosto", "não gosto")])
def test_opinions_in_the_column_of_ratings_are_kinds_of_events(tmp_path, opinions):
    write(tmp_path, events_csv="user,item,rating\nu,a,{}\nu,b,{}\n".format(*opinions))
    with pytest.raises(DataError, match=r"a number, but a kind of event: map it with --set data\.columns\.kind=rating"):
        read(tmp_path)
    assert set(read(tmp_path, columns={"kind": "rating"}).events.kind) == {*opinions}


@pytest.mark.parametrize("time", ["1400000000", "1400000000000", "2014-05-13T16:53:20Z"])
def test_times_that_are_not_recognised_are_asked_about(tmp_path, time):
    write(tmp_path, events_csv=f"user,item,page,moment of it\nu,a,3,{time}\nu,b,5,{time}\n")
    report = read(tmp_path).report
    assert "; in no known order; " in report.sources[0]
    assert report.lines()[-1] == (
        "warning: the events have no known order, so the test events are drawn at random; 'moment of it' seems to be "
        "their time: --set 'data.columns.timestamp_s=moment of it' (events.csv:2, column 'moment of it': "
        f"'{time}')"
    )
    assert "seems to be" not in "".join(read(tmp_path, columns={"timestamp_s": "moment of it"}).report.lines())
    write(tmp_path, events_csv="user,item,page,grade\nu,a,3,good\nu,b,5,bad\n")
    assert not read(tmp_path).report.doubts()


def test_of_several_columns_with_times_the_finest_is_asked_about(tmp_path):
    write(tmp_path, events_csv="user,item,year,day it was\nu,a,2023,2023-01-05\nu,b,2023,2023-01-06\n")
    assert "'day it was' seems to be their time" in finding(read(tmp_path), "no known order").what


@pytest.mark.parametrize("clock", ["10:11:12", "7:05", "10:11:12.5", "07:05 PM"])
def test_times_without_a_date_are_refused_with_advice(tmp_path, clock):
    write(tmp_path, events_csv=f"user,item,date,time\nu,a,2023-01-05,{clock}\nu,b,2023-01-06,{clock}\n")
    with pytest.raises(DataError, match="the time has no date; write date and time into one column, or map the column"):
        read(tmp_path)
    assert read(tmp_path, columns={"timestamp_s": "date"}).ordered


def test_a_table_folder(tmp_path):
    write(
        tmp_path / "shop",
        interactions_tsv="user\titem\trating\torder_in_user\nu\ta\t\t1\nu\tb\t\t0\n",
        items_jsonl='{"item": "b", "title": "Bee", "categories": [["X", "Y"]]}\n',
        users_csv="id,age\nu,9\n",
        notes_md="# nothing",
    )
    data = read(tmp_path, source="shop")
    assert data.name == "shop"
    assert events_of(data) == [("u", "b"), ("u", "a")]
    assert data.items.to_dict("records")[1] == {"item_id": "b", "title": "Bee", "categories": "X|Y"}
    assert data.users.age.tolist() == ["9"]
    assert not data.has_ratings
    same = read(tmp_path, events="shop/interactions.tsv", items="shop/items.jsonl", users="shop/users.csv")
    assert same.fingerprint == data.fingerprint and same.name == "shop"


def test_more_items(tmp_path):
    write(
        tmp_path,
        ratings__random_csv="user_id,book_id,rating\nu,1,5\nu,2,4\n",
        books_csv="book_id,title,year\n1,One,1999\n2,,2000\n",
        genres_csv='book_id,title,genres\n2,Two,"war,love"\n1,Uno,\n7,Seven,x\n',
    )
    data = read(tmp_path, more_items=["genres.csv"])
    assert not data.ordered
    assert data.items.to_dict("records") == [
        {"item_id": "1", "title": "One", "categories": "", "year": "1999"},
        {"item_id": "2", "title": "Two", "categories": "war|love", "year": "2000"},
    ]
    assert example(data, "not in the catalogue") == (1, "genres.csv, column 'book_id': '7'")
    assert data.report.rows_kept["more_items:genres.csv"] == 2


def test_a_saved_data_set_is_a_source(tmp_path):
    write(tmp_path, events_csv="user,item,time\nu,a,2\nu,b,1\n")
    data = read(tmp_path, name="made")
    data.save(tmp_path / "saved")
    assert read(tmp_path, source="saved").fingerprint == data.fingerprint
    assert read(tmp_path, source="saved").name == "made"
    assert read(tmp_path, source="saved", name="other", format="tfllmrec").name == "other"
    with pytest.raises(ConfigError, match="saved is a saved data set, which has its items and users already"):
        read(tmp_path, source="saved", items="items.csv")


def test_a_registered_name_is_asked_for_only_where_there_is_no_such_folder(tmp_path, monkeypatch):
    asked = []
    assets = types.ModuleType("tfllmrec.assets")
    assets.data_set = lambda name: asked.append(name) or ml_100k(tmp_path / "cache" / "ml-100k")
    monkeypatch.setitem(sys.modules, "tfllmrec.assets", assets)
    monkeypatch.setattr("tfllmrec.assets", assets, raising=False)
    data = read(tmp_path, source="movielens-100k")
    assert (asked, data.name, len(data.events)) == (["movielens-100k"], "movielens-100k", 3)
    ml_100k(tmp_path / "movielens-100k")
    read(tmp_path, source="movielens-100k")
    assert asked == ["movielens-100k"]


# --- What can be wrong -----------------------------------------------------------------------------------------------


def test_source_and_events_are_alternatives(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.source, or else a file as data\.events; found neither"):
        read_dataset(DataConfig(items="x.csv"))
    with pytest.raises(ConfigError, match="found both"):
        read(tmp_path, source=".", events="x.csv")


def test_sources_that_are_none(tmp_path):
    write(tmp_path, a_csv="x", sub=b"")
    with pytest.raises(ConfigError, match=r"a\.csv is a file"):
        read(tmp_path, source="a.csv")
    with pytest.raises(DataError, match="there is no folder"):
        read(tmp_path, source="./nowhere")
    with pytest.raises(DataError, match=r"no events in a known format.*there: a\.csv, sub"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"no events in format recbole: expected one NAME\.inter"):
        read(tmp_path, format="recbole")
    with pytest.raises(DataError, match=r"has no manifest"):
        read(tmp_path, format="tfllmrec")
    write(tmp_path / "half", u_data="1\t2\t5\t7\n")
    with pytest.raises(
        DataError, match=r"expected u\.data with u\.item \(100K\), .* found there: u\.data\. Name the files"
    ):
        read(tmp_path, source="half")


def test_a_plain_name_goes_before_a_longer_one(tmp_path):
    write(tmp_path, ratings_csv="user,item\nu,a\n", ratings__old_csv="user,item\nx,y\n")
    assert events_of(read(tmp_path)) == [("u", "a")]


def test_ambiguous_folder(tmp_path):
    write(tmp_path, ratings_csv="x", events_csv="y")
    with pytest.raises(DataError, match=r"which of events\.csv, ratings\.csv is it"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"user,item\n", "has a header but no rows"),
        (
            b"user,rating\nu,5\n",
            r"no column for item_id.*found 'user', 'rating'\. Map it: --set data\.columns\.item_id=",
        ),
        (b"usr_id,item\nu,5\n", r"nearest: 'usr_id'\); found .* Map it: --set data\.columns\.user_id=usr_id, or"),
        (b"user item\nu a\n", "no column for user_id"),
        (b"who,stars,when\nu,5,9\n", r"no column for user_id nor for item_id\..*'stars', 'when'\. Map it: --set"),
        (b"a,b,c,d\nu,a,5,9\n", r"found 'a', 'b', 'c', 'd'\. Map it"),
        (
            b"u,a,5,2019-10-01\nu,b,5,9\n",
            r"'2019-10-01'\. '5' looks like a value: if the file has no header, add one\.",
        ),
        (b"user,Variant Price,Variant SKU\nu,5,a\n", r"data\.columns\.item_id=Variant SKU'"),
        (b"user_pseudo_id,user_age,item\nu,5,a\n", r"data\.columns\.user_id=user_pseudo_id,"),
        (b"user_feature_0,item\n5,a\n", r"data\.columns\.user_id=NAME_IN_THE_FILE"),
        (b"user,Heat,Casino\nu,5,4\n", r"found 'user', 'Heat', 'Casino'\. Map it: --set data\.columns\.item_id=NAME_"),
        (b"u,2009-05-04T23:08:57Z,a\nu,2009-05-04T23:08:58Z,b\n", "'2009-05-04T23:08:57Z' looks like a value"),
        (
            b"user^item^time\nu^a^1\n",
            r"found 'user\^item\^time'\. If the file has several columns, separate them by a tab",
        ),
        ("用户,商品\nu,a\n".encode("gbk"), r"In reading it: not UTF-8: read as Windows-1252 \(set data\.encoding if"),
        (
            b'{"user": "u", "properties": {"product_id": 5}}\n',
            "'properties' holds records with a field 'product_id': wri",
        ),
        (b'{"user": "u", "lines": [{"item_id": 5}]}\n', "'lines' holds records with a field 'item_id': write"),
        (b"user,item\nu\0,a\n", "events.csv:2: a NUL character"),
        (b"\x1f\x8bbroken", "cannot be read"),
        (gzipped(b"user,item\nu,a\n" * 99)[:-9], "cannot be read"),
        (b"PAR1broken", "not a readable Parquet"),
        (b"user,item\n,\n", "no event is left"),
    ],
)
def test_unusable_files(tmp_path, content, message):
    (tmp_path / "events.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path, events="events.csv")


def test_missing_files(tmp_path):
    write(tmp_path, events_csv="user,item\nu,a\n")
    with pytest.raises(DataError, match=r"item\.csv does not exist\. .* holds: events\.csv"):
        read(tmp_path, events="events.csv", items="item.csv")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="none contains no file to read"):
        read(tmp_path, events="none")


def test_json_that_is_none(tmp_path):
    write(tmp_path, a_jsonl="[1, 2\n", b_jsonl="nothing\n1\n", c_jsonl='[{"user": "u", "item": "a"}, 3]')
    for name, message in (("a", "begins as a JSON array but is not valid"), ("b", "contains no JSON object")):
        with pytest.raises(DataError, match=message):
            read(tmp_path, events=f"{name}.jsonl")
    assert example(read(tmp_path, events="c.jsonl", max_bad_rows=0.5), "no JSON object") == (1, "c.jsonl:2, '3'")


def test_json_lines_that_are_broken_are_counted(tmp_path):
    lines = ['{"user": "u", "item": 1}', "", '{"user": "u", "item"', "17", '{"user": "\\ud800", "item": 2.0}', ""]
    write(tmp_path, e_jsonl="\n".join(lines))
    data = read(tmp_path, events="e.jsonl", max_bad_rows=0.5)
    assert events_of(data) == [("?", "2"), ("u", "1")]
    assert example(data, "no JSON object") == (2, """e.jsonl:3, '{"user": "u", "item"'""")
    assert example(data, "blank row") == (1, "e.jsonl:2")
    assert data.report.rows_in["events"] == 5


def test_rows_with_other_than_the_expected_fields(tmp_path):
    write(tmp_path, e_csv="user,item,rating\nu,a,5\n\nu,b\nu,c,4,extra\n  \nu,d,1\n")
    data = read(tmp_path, events="e.csv", max_bad_rows=0.5)
    assert sorted(events_of(data)) == [("u", "a"), ("u", "d")]
    assert example(data, "fields, expected") == (2, "e.csv:4, 'u,b'")
    assert example(data, "blank row") == (2, "e.csv:3")
    assert data.report.rows_in["events"] == 6
    with pytest.raises(DataError, match=r"e\.csv:4, 'u,b': found 2 fields, expected 3\. 2 of 6 rows"):
        read(tmp_path, events="e.csv", max_bad_rows=0.2)


def test_row_numbers_are_lines_though_fields_hold_line_breaks(tmp_path):
    write(tmp_path, e_csv='\nuser,item,note\nu,a,"two\nlines"\n,b,"x"\n,c,"three\nlong\nlines"\n')
    data = read(tmp_path, events="e.csv", max_bad_rows=1)
    # Line 1 is blank and 2 the header; a begins at 3 and takes two, so b is at 5. c takes three lines.
    assert example(data, "no user_id") == (1 + 3, "e.csv:5, column 'user': ''")


def test_a_quote_that_is_never_closed_counts_every_line_it_swallows(tmp_path):
    rows = "".join(f"u,i{i},1\n" for i in range(10))
    write(tmp_path, e_csv='user,item,rating\nu,a,5\nu,"b,5\n' + rows)
    with pytest.raises(DataError, match="11 of 12 rows"):
        read(tmp_path, events="e.csv", max_bad_rows=0.5)
    write(tmp_path, e_csv='user,item,rating\nu,a,5\nu,"b,5\n' + rows + 'u,c",5\n')
    data = read(tmp_path, events="e.csv")  # every row can be read if quotation marks are text
    assert len(data.events) == 13 and example(data, "quotation marks do not enclose cells")[0] == 2


def test_tsv_without_quoting(tmp_path):
    write(tmp_path, e_tsv="user\titem\nu\ta\nu\tb\n", i_tsv='item\ttitle\na\t"Heat\nb\tSeven"\n')
    data = read(tmp_path, events="e.tsv", items="i.tsv")
    assert data.items.title.tolist() == ['"Heat', 'Seven"']


def test_lines_in_another_encoding_are_repaired_and_counted(tmp_path):
    write(tmp_path, e_csv="user,item\nu,a\n", i_csv="item,title\na,Café\n".encode("cp1252"))
    data = read(tmp_path, events="e.csv", items="i.csv")
    assert data.items.title.tolist() == ["Café"]
    assert example(data, "not UTF-8") == (1, "i.csv:2")
    assert read(tmp_path, events="e.csv", items="i.csv", encoding="latin-1").items.title.tolist() == ["Café"]
    with pytest.raises(DataError, match=r"i\.csv:2: byte 0xe9 is not ascii\. Set data\.encoding"):
        read(tmp_path, events="e.csv", items="i.csv", encoding="ascii")
    with pytest.raises(ConfigError, match="'klingon' is not an encoding"):
        read(tmp_path, events="e.csv", encoding="klingon")


def test_repeated_header_names_and_an_index_column(tmp_path):
    write(tmp_path, e_csv=",user,item,item,rating\n0,u,a,x,5\n")
    assert events_of(read(tmp_path, events="e.csv")) == [("u", "a")]
    write(tmp_path, e_tsv="\tuser\titem\n0\tu\ta\n")
    assert events_of(read(tmp_path, events="e.tsv")) == [("u", "a")]


FIELDS = st.sampled_from(
    ["u", "v", "a", "b", "1", "2.5", "", " ", "nan", "x y", "-1", "1e99", "é", "NA", "inf", "2014-01-02"]
)
LINES = st.lists(st.one_of(st.lists(FIELDS, min_size=1, max_size=6).map(",".join), st.text(max_size=8)), max_size=12)


@settings(max_examples=40)
@given(LINES, st.sampled_from(["last", "all"]), st.integers(1, 3), st.sampled_from(["utf-8", "cp1252"]))
def test_no_row_is_ever_lost_uncounted(tmp_path, lines, repeats, min_user_events, encoding):
    """Whatever stands in the file: a DataError that names it, or rows in = rows kept + rows dropped, all lines told."""
    lines = ["u,a,5,1", *(line.replace("\r", "").replace("\n", "") for line in lines)]
    content = "\n".join(["user,item,rating,time", *lines]).encode(encoding, "replace") + b"\n"
    (tmp_path / "e.csv").write_bytes(content)
    config = DataConfig(events="e.csv", repeats=repeats, min_user_events=min_user_events, max_bad_rows=1)
    try:
        data = read_dataset(config, tmp_path)
    except DataError as error:
        assert "e.csv" in str(error)
        return
    report = data.report
    assert report.rows_in["events"] == report.rows_kept["events"] + report.dropped("events")
    assert report.rows_in["events"] == len(lines)
    assert report.rows_kept["events"] == len(data.events) > 0
    assert data.events.user_index.is_monotonic_increasing
    for _, own in data.events.groupby("user_index"):
        assert own.order.tolist() == list(range(len(own)))
        assert len(own) >= min_user_events
    assert (data.items.item_id.to_numpy()[data.events.item_index] == data.events.item_id).all()
    assert (data.users.user_id.to_numpy()[data.events.user_index] == data.events.user_id).all()
    assert not data.events.isin([np.inf, -np.inf]).to_numpy().any()
    if repeats == "last":
        assert not data.events.duplicated(["user_id", "item_id"]).any()


@settings(max_examples=40)
@given(
    st.lists(
        st.one_of(
            st.dictionaries(
                st.sampled_from(["item", "title", "description", "categories", "x"]),
                st.recursive(
                    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
                    max_leaves=4,
                ),
            ).map(json.dumps),
            st.text(max_size=6).map(lambda text: text.replace("\n", "")),
        ),
        max_size=8,
    )
)
def test_any_catalogue_gives_strings_or_a_message(tmp_path, lines):
    write(tmp_path, e_csv="user,item\nu,a\n")
    content = "\n".join(['{"item": "a"}', *lines]) + "\n"
    (tmp_path / "i.jsonl").write_text(content, encoding="utf-8", newline="")
    rows = len(re.findall("\r\n|\r|\n", content))
    try:
        data = read(tmp_path, events="e.csv", items="i.jsonl", max_bad_rows=1)
    except DataError as error:
        assert "i.jsonl" in str(error)
        return
    report = data.report
    assert report.rows_in["items"] == report.rows_kept["items"] + report.dropped("items") == rows
    assert data.items.map(lambda value: isinstance(value, str)).to_numpy().all()
    assert data.items.item_id.is_unique and (data.items.item_id != "").all()
    assert len(data.fingerprint) == 64


# --- The order of rows -----------------------------------------------------------------------------------------------


def tables(shuffle, extra):
    """Files with ties, repeats at one time, several rows an id and unlisted ids, their rows shuffled by ``shuffle``."""
    rng = np.random.default_rng(0)
    n = 400
    events = pd.DataFrame(
        {
            "userId": [f"u{u}" for u in rng.integers(0, 30, n)],
            "movieId": rng.integers(1, 60, n),
            "rating": rng.integers(1, 6, n),
            **({"timestamp": 1_400_000_000 + rng.integers(0, 20, n)} if extra == "timestamp" else {}),
            **({"order": rng.integers(0, 9, n)} if extra == "order" else {}),
        }
    )
    movies = pd.DataFrame({"movieId": rng.integers(1, 50, 90), "genres": [f"g{i % 3}" for i in range(90)]})
    movies["title"] = [f"t{i}" if i % 2 else "" for i in rng.integers(0, 100, 90)]
    users = pd.DataFrame({"userId": [f"u{u}" for u in rng.integers(0, 40, 50)], "age": rng.integers(1, 5, 50)})
    tags = pd.DataFrame({"movieId": rng.integers(1, 60, 300), "tag": rng.choice(["A", "a", "b", "B", "c"], 300)})
    more = [{"movieId": int(i), **({"plot": "p"} if i % 2 else {"cast": "c"})} for i in rng.permutation(60)]
    return {
        "ratings_csv": events.iloc[shuffle(n)].to_csv(index=False),
        "movies_csv": movies.iloc[shuffle(90)].to_csv(index=False),
        "users_csv": users.iloc[shuffle(50)].to_csv(index=False),
        "tags_csv": tags.iloc[shuffle(300)].to_csv(index=False),
        "more_jsonl": "\n".join(json.dumps(more[i]) for i in shuffle(60)),
    }


@pytest.mark.parametrize("repeats", ["last", "first", "all"])
@pytest.mark.parametrize("extra", ["timestamp", "order", "nothing"])
def test_the_order_of_rows_changes_nothing(tmp_path, extra, repeats):
    read_in = []
    for name, shuffle in (("a", np.arange), ("b", np.random.default_rng(1).permutation)):
        folder = write(tmp_path / name, **tables(shuffle, extra))
        more = {"users": "users.csv", "more_items": ["more.jsonl"], "repeats": repeats, "name": "n"}
        read_in.append(read(folder, **more))
    one, other = read_in
    for table in ("events", "items", "users"):
        pd.testing.assert_frame_equal(getattr(one, table), getattr(other, table))
    assert one.fingerprint == other.fingerprint
    assert one.describe() == other.describe()
    assert [(f.what, f.count) for f in one.report.findings] == [(f.what, f.count) for f in other.report.findings]
    kinds = ["leave_random_out", "random", "cold_items", "cold_users"]
    kinds += ["leave_last_out"] * (extra != "nothing") + ["global_time"] * (extra == "timestamp")
    for kind in kinds:
        splits = [make_split(data, SplitConfig(kind=kind), seed=3) for data in read_in]
        for part in ("validation", "test"):
            left, right = (getattr(split, part) for split in splits)
            assert left.user_ids.tolist() == right.user_ids.tolist()
            assert left.targets.values.tolist() == right.targets.values.tolist()
            assert left.history.values.tolist() == right.history.values.tolist()
        pd.testing.assert_frame_equal(splits[0].train, splits[1].train)


# --- The shared data sets, by the numbers of their README ------------------------------------------------------------

MAGAZINES = {
    "events": "amazon-2018-magazine/Magazine_Subscriptions_5.json.gz",
    "items": "amazon-2018-magazine/meta_Magazine_Subscriptions.json.gz",
    "repeats": "all",
}


def test_frames_with_equal_names_and_named_indexes():
    events = pd.DataFrame([["u", "a", "b"]], columns=["user_id", "item_id", "item_id"])
    assert events_of(dataset_from_frames(events)) == [("u", "a")]
    events = pd.DataFrame({"item_id": ["a", "b"]}, index=pd.Index(["u", "v"], name="user_id"))
    assert events_of(dataset_from_frames(events)) == [("u", "a"), ("v", "b")]


@shared
@pytest.mark.shared
@pytest.mark.parametrize(
    ("config", "users", "items", "events", "text"),
    [
        ({"source": "movielens-small"}, 610, 9742, 100836, ["title", "categories"]),
        ({"source": "movielens-100k"}, 943, 1682, 100000, ["title", "categories"]),
        ({"source": "movielens-1m"}, 6040, 3883, 1000209 - 598, ["title", "description", "categories"]),
        ({"source": "amazon-2014/beauty"}, 22363, 12101, 198502, ["title", "categories"]),
        ({"source": "amazon-2014/toys"}, 19412, 11924, 167597, ["title", "categories"]),
        (MAGAZINES, 348, 157, 2375, ["title", "description", "categories"]),
        (
            {"source": "goodbooks-10k", "more_items": ["goodbooks-10k/book_genres.csv"]},
            *(2672, 10000, 298176, ["title", "categories"]),
        ),
    ],
    ids=lambda value: Path(value.get("source", "magazine")).name if isinstance(value, dict) else "",
)
def test_shared_data_sets(config, users, items, events, text):
    data = read_dataset(DataConfig(**config), SHARED)
    assert data.n_users == users
    assert len(data.events) == events
    # The magazine catalogue lists far more items than the events touch, which are what its README counts.
    counted = data.events[ITEM_INDEX].nunique() if config is MAGAZINES else data.n_items
    assert counted == items
    assert [c for c in ("title", "description", "categories", "tags") if c in data.items] == text
    assert (data.items[text].map(len).sum(axis=1) > 0).mean() > 0.9
    assert data.ordered == (data.name != "goodbooks-10k")
    doubted = {
        "beauty": "adjacent events ascend by item id in 69.4%",
        "toys": "adjacent events ascend by item id in 72.0%",
    }
    tied = (
        "ties decide the held-out items of"  # true of these three: their users rate several items in one second or day
    )
    doubted |= dict.fromkeys(("movielens-small", "movielens-100k", "Magazine_Subscriptions_5"), tied)
    assert [doubt[: len(doubted[data.name])] for doubt in data.report.doubts()] == (
        [doubted[data.name]] if data.name in doubted else []
    )
    for table, n in data.report.rows_in.items():
        assert n == data.report.rows_kept[table] + data.report.dropped(table)
    assert not data.items["title"].str.contains("<span|&amp;").any()


@shared
@pytest.mark.shared
def test_toys_sorted_by_item_id_are_doubted():
    data = read_dataset(DataConfig(source="amazon-2014/toys"), SHARED)
    wrong = data.events[["user_id", "item_id"]].sort_values(["user_id", "item_id"])
    wrong["order"] = wrong.groupby("user_id").cumcount()
    by_id, cold = dataset_from_frames(wrong, data.items).report.doubts()
    assert "ascend by item id: 19,412 of 19,412 users" in by_id and cold.startswith("1,451 of 19,412 last events")


def test_a_catalogue_alone(tmp_path):
    folder = write(tmp_path, new_tsv="sku\tnom\tgenre\tsize\n7.0\t<b>a</b>\t['x', 'y']\t3\n8.0\tb\t\t\n8.0\tc\t\t\n")
    config = DataConfig(columns={"title": "nom", "user_id": "who"})  # of a mapping for several files, what concerns it
    items, report = read_items(folder / "new.tsv", config)
    assert items.to_dict("list") == {
        "item_id": ["7", "8"], "title": ["a", "b"], "categories": ["x|y", ""], "size": ["3", ""],
    }  # fmt: skip
    assert report.sources == ["items: new.tsv (item_id <- sku, title <- nom, categories <- genre; other columns: size)"]
    assert (report.rows_in, report.rows_kept, report.dropped("items")) == ({"items": 3}, {"items": 2}, 1)
    with pytest.raises(ConfigError, match="'nom' is not a column that tfllmrec knows"):
        read_items(folder / "new.tsv", DataConfig(columns={"nom": "title"}))
    with pytest.raises(DataError, match=r"gone.tsv does not exist. .* holds: new.tsv"):
        read_items(folder / "gone.tsv", config)


def ids_of(tmp_path, name, content, **config):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_ids(tmp_path / name, DataConfig(**config))


def parquet_of(**columns):
    return pd.DataFrame(columns).to_parquet(index=False)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", "userId\n7\n8\n"),
        ("p.csv", "userId\n7.0\n8.0\n"),
        ("p.csv", 'age,user_id\n\n3,"7"\n4,8\n'),
        ("p.csv", "Customer ID;age\n7;3\n8;4\n"),
        ("p.csv", ",user_id\n0,7\n1,8\n"),  # pandas' index column
        ("p.tsv", "reviewerID\tage\r\n7\t3\r\n8\t4\r\n"),
        ("p.txt", "user\n7\n8\n"),
        ("p.txt", "\ufeff7\n\n8\n"),
        ("p.txt", "\n7.0\n8.0"),
        ("p.txt", "7\r8\r"),
        ("p", "visitor_id|x\n7|1\n8|2\n"),
        ("p.csv", "7\n8\n"),
        ("p.txt", "userId\n7\n8\n".encode("utf-16")),
        ("p.csv.gz", gzipped(b"userId,x\n7,1\n8,2\n")),
        ("p.txt.gz", gzipped(b"7\n8\n")),
        ("p.gz", gzipped(b"uid\n7\n8\n")),
        ("p.jsonl", '{"user": 7}\n{"user": "8"}\n'),
        ("p.jsonl", '{"userId": 7.0}\n{"userId": 8.0}\n'),
        ("p.jsonl", '7\n"8"\n'),
        ("p.json", '["7", "8"]'),
        ("p.json", '[{"customer_id": 7}, {"customer_id": 8}]'),
        ("p.parquet", parquet_of(userId=[7, 8])),
        ("p.parquet", parquet_of(user=[7.0, 8.0], age=[1, 2])),
        ("p.parquet", parquet_of(Kunde=["7", "8"])),  # the only column
        ("no-ending", parquet_of(user_id=["7", "8"])),
        ("ratings.dat", "7::1::5::9\n8::1::5::9\n"),  # an event log is a file of users, too
        ("u.user", "7|24|M|writer|1\n8|53|F|other|2\n"),
    ],
)
def test_a_file_of_user_ids(tmp_path, name, content):
    assert ids_of(tmp_path, name, content)[0] == ["7", "8"]


def test_a_first_line_that_is_an_id_is_told(tmp_path):
    ids, report = ids_of(tmp_path, "p.txt", "\nu 1\n\nu2\nu 1\n")
    assert ids == ["u 1", "u2"]
    assert report.lines() == [
        "users: p.txt (user_id <- user_id)",
        "users: 4 rows read, 2 kept",
        "  users: 1 kept: the first line is not a known column name, so it is read as a user_id (p.txt:2, 'u 1')",
        "  users: 1 dropped: blank row (p.txt:3)",
        "  users: 1 dropped: the user_id occurs again (kept: the row with the most filled cells) "
        "(p.txt:5, column 'user_id': 'u 1')",
    ]
    assert ids_of(tmp_path, "p.txt", "only")[0] == ["only"]


def test_user_ids_by_mapping_and_encoding(tmp_path):
    content = "Käufer\nJosé\n".encode("latin-1")
    assert ids_of(tmp_path, "p.txt", content, encoding="latin-1", columns={"user_id": "Käufer"})[0] == ["José"]
    assert ids_of(tmp_path, "p.txt", content, encoding="latin-1")[0] == ["Käufer", "José"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "\n", "is empty"),
        ("p.csv", "", "is empty"),
        ("p.csv", "user_id\n", "has a header but no rows"),
        ("p.csv", "age,x\n3,4\n", r"no column for user_id\. Expected one named .*; found 'age', 'x'"),
        ("p.txt", "movieId\n3\n", r"no column for user_id\..*found 'movieId'"),
        ("p.parquet", parquet_of(movieId=[3]), r"no column for user_id\..*found 'movieId'"),
        ("p.csv", "age,user\n3,u1\n\n4,\n", r"p\.csv:4, column 'user': '': no user_id\. 1 of 3 rows"),
        ("p.jsonl", '{"user": "u1"}\nnonsense\n', r"p\.jsonl:2, 'nonsense'"),
        ("p.jsonl", '["u1"]\n["u2"]\n', "begins as a JSON array"),
        ("p.jsonl", '{"user": "u1"}\n{"user": null}\n', r"p\.jsonl:2, column 'user': 'None': no user_id"),
        ("p.txt", gzipped(b"u1\n" * 99)[:-9], "cannot be read"),
    ],
)
def test_unusable_files_of_user_ids(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        ids_of(tmp_path, name, content)


def test_user_ids_of_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt does not exist"):
        read_ids(tmp_path / "none.txt", DataConfig())
    with pytest.raises(DataError, match="no user id is left of 2 rows"):
        ids_of(tmp_path, "p.csv", "user,x\n,1\n,2\n", max_bad_rows=1)
