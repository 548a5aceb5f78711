import bz2
import datetime
import decimal
import gzip
import io
import json
import lzma
import uuid
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from tfllmrec.config import DataConfig
from tfllmrec.data import read_dataset
from tfllmrec.data.files.tables import read_table
from tfllmrec.errors import DataError

SHARED = Path(__file__).parents[4] / "shared" / "data"
shared = pytest.mark.skipif(not SHARED.exists(), reason=f"no shared data sets at {SHARED}")

CSV = b"user,item,rating\nu,a,5\nu,b,4\nv,a,3\n"
CELLS = [("u", "a", "5"), ("u", "b", "4"), ("v", "a", "3")]


def table(path, content=None, **config):
    """Reads a table; ``content``, if any, is written first."""
    if content is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, "events", DataConfig(events="unused", **config))


def cells(raw):
    cells_of = raw.frame.astype(object).to_numpy()
    return [tuple(None if v is None or v is pd.NA or v != v else v for v in row) for row in cells_of]


def write_parquet(path, columns, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path, **options)
    return path


def found(raw, text):
    """The only finding whose description contains ``text``: its count and its example."""
    findings = [f for f in raw.findings if text in f.what]
    assert len(findings) == 1, raw.findings
    return findings[0].count, findings[0].example


# --- Compression -----------------------------------------------------------------------------------------------------


def zipped(members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def arrow_compressed(content, codec):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


# Raw DEFLATE output depends on the time for gzip alone, which must be fixed: contents are parts of the tests' names.
COMPRESSED = {
    "gz": gzip.compress(CSV, mtime=0),
    "gz of several members": gzip.compress(CSV[:20], mtime=0) + gzip.compress(CSV[20:], mtime=0),
    "bz2": bz2.compress(CSV),
    "bz2 of several streams": bz2.compress(CSV[:20]) + bz2.compress(CSV[20:]),
    "xz": lzma.compress(CSV),
    "lzma": lzma.compress(CSV, format=lzma.FORMAT_ALONE),
    "zst": arrow_compressed(CSV, "zstd"),
    "zst of several frames": arrow_compressed(CSV[:20], "zstd") + arrow_compressed(CSV[20:], "zstd"),
    "zst that begins with a skippable frame": b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + arrow_compressed(CSV, "zstd"),
    "lz4": arrow_compressed(CSV, "lz4"),
    "zip": zipped({"ratings.csv": CSV}),
    "zip with the files of macOS": zipped({"data/ratings.csv": CSV, "__MACOSX/data/._ratings.csv": b"x"}),
    "gz in gz": gzip.compress(gzip.compress(CSV, mtime=0), mtime=0),
    "gz in zip": zipped({"ratings.csv.gz": gzip.compress(CSV, mtime=0)}),
}


@pytest.mark.parametrize("name", ["events.csv", "events", "events.csv.gz"])
@pytest.mark.parametrize("kind", COMPRESSED)
def test_compressions_are_recognised_by_their_first_bytes(tmp_path, kind, name):
    assert cells(table(tmp_path / name, COMPRESSED[kind])) == CELLS


def test_the_member_of_a_zip_archive_tells_the_format(tmp_path):
    assert cells(table(tmp_path / "download.zip", zipped({"e.jsonl": '{"user": "u", "item": "a"}\n'}))) == [("u", "a")]
    sink = io.BytesIO()
    parquet.write_table(pa.table({"user": ["u"]}), sink)
    assert cells(table(tmp_path / "download.zip", zipped({"x": sink.getvalue()}))) == [("u",)]
    # In a .csv, JSON in the first cell is text.
    assert cells(table(tmp_path / "e.csv.zst", arrow_compressed(b"[,b\n1,2\n", "zstd"))) == [("1", "2")]


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zst", "lz4", "zip", "GZ"])
def test_compressed_files_are_found_in_a_folder(tmp_path, ending):
    kind = ending.lower()
    layouts = {
        "movielens": {"u.data": b"u\ta\t5\t1\n", "u.item": b"a|T|||" + b"|0" * 19 + b"\n", "u.user": b"u|7|F|x|0\n"},
        "recbole": {"x.inter": b"user_id:token\titem_id:token\nu\ta\n", "x.item": b"item_id:token\na\nb\n"},
        "table": {"ratings.csv": b"user,item\nu,a\n", "books.jsonl": b'{"item": "a", "title": "T"}\n'},
    }

    def compressed(name, content):
        return {
            "gz": lambda: gzip.compress(content), "bz2": lambda: bz2.compress(content),
            "xz": lambda: lzma.compress(content), "zst": lambda: arrow_compressed(content, "zstd"),
            "lz4": lambda: arrow_compressed(content, "lz4"), "zip": lambda: zipped({name: content}),
        }[kind]()  # fmt: skip

    for layout, files in layouts.items():
        (tmp_path / layout).mkdir()
        for name, content in files.items():
            (tmp_path / layout / f"{name}.{ending}").write_bytes(compressed(name, content))
        data = read_dataset(DataConfig(source=layout), tmp_path)
        assert (data.events.user_id[0], data.events.item_id[0]) == ("u", "a")
        assert data.n_items == {"movielens": 1, "recbole": 2, "table": 1}[layout]
    assert data.items.title.tolist() == ["T"]
    given = read_dataset(DataConfig(events=f"table/ratings.csv.{ending}"), tmp_path)
    assert given.name == "table"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            zipped({"ratings.csv": CSV, "movies.csv": b"x"}),
            r"zip archive of 2 files \(ratings\.csv, movies\.csv\): expected one",
        ),
        (zipped({}), r"zip archive of 0 files \(none\)"),
        (zipped({"[Content_Types].xml": b"x", "xl/workbook.xml": b"x"}), "Office file.*as CSV"),
        (COMPRESSED["bz2"][:-9], "cannot be read"),
        (COMPRESSED["xz"][:-9], "cannot be read"),
        (COMPRESSED["zst"][:-9], "cannot be read"),
        (COMPRESSED["lz4"][:-9], "cannot be read"),
        (COMPRESSED["zip"][:-9], "cannot be read"),
        (b"7z\xbc\xaf\x27\x1c\0\x04", "is a 7-Zip archive"),
        (b"Rar!\x1a\x07\x01\0", "is a RAR archive"),
        (b"a.csv".ljust(257, b"\0") + b"ustar\0" + b"00" * 200, "is a tar archive"),
        (gzip.compress(b"a.csv".ljust(257, b"\0") + b"ustar\0" + b"00" * 200), "is a tar archive"),
        (b"Obj\x01\x04\x14", "is an Avro file"),
        (b"SQLite format 3\0", "is an SQLite database"),
        (b"\n<!DOCTYPE html><html>Sign in", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"\x0b\x02\x80user,item\x03\xff\n" * 9, "expected text, or Parquet, or .*found other data"),
    ],
)
def test_files_that_are_no_table(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        table(tmp_path / "events.csv", content)


def test_an_encrypted_archive_is_refused(tmp_path):
    content = bytearray(zipped({"ratings.csv": CSV}))
    for header in (b"PK\x03\x04", b"PK\x01\x02"):  # sets the flag of encryption, 6 or 8 bytes after the header
        content[content.index(header) + (6 if header.endswith(b"\x04") else 8)] |= 1
    with pytest.raises(DataError, match=r"cannot be read: .*encrypted"):
        table(tmp_path / "events.zip", bytes(content))


# --- Line ends -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b'user,item,note\ru,a,"two\nlines"\ru,b,x\r',
        b'user,item,note\r\nu,a,"two\nlines"\r\nu,b,x\r\n',
        b'user,item,note\r\nu,a,"two\nlines"\nu,b,x\r',
        b'user,item,note\nu,a,"two\nlines"\ru,b,x',
        b'\r\ruser,item,note\ru,a,"two\nlines"\r\nu,b,x\r',
    ],
)
def test_rows_may_end_in_any_way(tmp_path, content):
    raw = table(tmp_path / "e.csv", content)
    assert cells(raw) == [("u", "a", "two\nlines"), ("u", "b", "x")]
    above = 2 if content.startswith(b"\r") else 0
    assert raw.rows.tolist() == [2 + above, 4 + above]
    assert raw.spans.tolist() == [2, 1]


def test_rows_of_other_formats_may_end_in_any_way(tmp_path):
    assert cells(table(tmp_path / "e.tsv", b"user\titem\ru\ta\r\nv\tb\n")) == [("u", "a"), ("v", "b")]
    assert cells(table(tmp_path / "e.jsonl", b'{"user": 1}\r{"user": 2}\r\n{"user": 3}\n')) == [(1,), (2,), (3,)]
    assert cells(table(tmp_path / "e.inter", b"user_id:token\titem_id:token\ru\ta\r")) == [("u", "a")]
    assert len(table(tmp_path / "u.data", b"1\t2\t3\t4\r5\t6\t7\t8\r").frame) == 2


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_other_separators_of_lines_are_text(tmp_path, mark):
    assert cells(table(tmp_path / "e.csv", f"user,title\nu,one{mark}two\n")) == [("u", f"one{mark}two")]
    line = json.dumps({"title": f"one{mark}two"}, ensure_ascii=mark < " ")
    assert cells(table(tmp_path / "e.jsonl", line + "\n")) == [(f"one{mark}two",)]


def test_a_header_of_200_000_characters(tmp_path):
    long = "x" * 200_000
    raw = table(tmp_path / "e.csv", f"user,item,{long}\nu,a,1\n")
    assert list(raw.frame) == ["user", "item", long]
    many = ",".join(f"c{i}" for i in range(40_000))
    with pytest.raises(DataError, match=r"found 40,000 columns or more; expected at most data\.max_columns = 10,000"):
        table(tmp_path / "e.csv", f"{many}\n{many}\n")
    with pytest.raises(DataError, match="no column for user_id") as error:
        read_dataset(DataConfig(events=table(tmp_path / "f.csv", f"{long},b\n1,2\n") and "f.csv"), tmp_path)
    assert len(str(error.value)) < 2_000


def test_long_cells(tmp_path):
    assert cells(table(tmp_path / "e.csv", "user,note\nu,{0}\nv,{0}\n".replace("{0}", "x" * 200_000)))[1][0] == "v"
    assert cells(table(tmp_path / "e.csv", 'user,note\nu,"' + "x\n" * 100_000 + '"\nv,x\n'))[1] == ("v", "x")


@pytest.mark.parametrize(("content", "row"), [(b"user,item\nu,a\0\n", 2), (b"user,it\0em\n", 1), (b"{}\n{}\n\0", 3)])
def test_nul_characters(tmp_path, content, row):
    with pytest.raises(DataError, match=rf"e\.txt:{row}: a NUL character"):
        table(tmp_path / "e.txt", content)


def test_encodings_with_a_byte_order_mark(tmp_path):
    text = "user,title\nu,Café ☕\n"
    for encoding in ("utf-8-sig", "utf-16", "utf-32", "utf-16"):
        assert cells(table(tmp_path / "e.csv", text.encode(encoding))) == [("u", "Café ☕")]


# --- Separators and quotes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("sep=;\nuser;item;rating\nu;a;4,5\n", [("u", "a", "4,5")]),
        ("sep=;\r\nuser;item;a,b,c,d\r\nu;a;4,5,6,7\r\n", [("u", "a", "4,5,6,7")]),
        ("\ufeffSEP=,\nuser,item;x\nu,a;b\n", [("u", "a;b")]),
        ('"sep=|"\nuser|item\nu|a\n', [("u", "a")]),
        ("sep=^\nuser^item\nu^a\n", [("u", "a")]),
        ("user;item;rating\nu;a;4,5\nv;b;3,5\n", [("u", "a", "4,5"), ("v", "b", "3,5")]),
        ("user;item;rating,stars\nu;a;4,5\nv;b;3,5\n", [("u", "a", "4,5"), ("v", "b", "3,5")]),
        ('user\titem\t"rating, 1, 2, 3, 4, 5"\nu\ta\t5\n', [("u", "a", "5")]),
        ('"Last, First"|user|item\n"Doe, J"|u|a\n', [("Doe, J", "u", "a")]),
        ("user|item|a, b, c, d\nu|a|x, y, z\nv|b|y\n", [("u", "a", "x, y, z"), ("v", "b", "y")]),
        ("user,item,note\nu,a,x|y|z|w\nv,b,1;2;3;4\n", [("u", "a", "x|y|z|w"), ("v", "b", "1;2;3;4")]),
        ("user,item,path\nu,a,x::y::z\n", [("u", "a", "x::y::z")]),
        ("user::item::name\nu::a::it\x1f's, so\n", [("u", "a", "it\x1f's, so")]),
    ],
)
def test_the_separator_is_chosen_by_several_lines(tmp_path, content, rows):
    assert cells(table(tmp_path / "e.txt", content)) == rows


def test_a_choice_between_separators_is_reported(tmp_path):
    raw = table(tmp_path / "e.csv", "user;item;rating,stars\nu;a;4,5\nu;a;5\n")
    assert found(raw, "can be split by ';' or ',': read with ';'") == (1, "e.csv:1, 'user;item;rating,stars'")
    assert table(tmp_path / "e.csv", CSV).findings == ()
    raw = table(tmp_path / "e.tsv", CSV)
    assert cells(raw) == CELLS
    assert found(raw, "named .tsv, but its separator is ','")[0] == 1


@pytest.mark.parametrize(
    ("content", "cell"),
    [
        (r'"He said \"no\""', 'He said "no"'),
        (r'"He said \"no\", twice"', 'He said "no", twice'),
        (r'"24\""', '24"'),
        (r'"\"quoted\" from the start"', '"quoted" from the start'),
        (r'"both \"ways\" C:\games \\ \N"', r'both "ways" C:\games \ \N'),
        (r"without\, quotes", "without, quotes"),
        ('"He said ""no"", twice"', 'He said "no", twice'),
        (r'"C:\"', "C:\\"),
        (r'"a folder: C:\games"', r"a folder: C:\games"),
        (r"\N", r"\N"),
        (r'"{""title"": ""a \""b\"" c""}"', r'{"title": "a \"b\" c"}'),
    ],
)
def test_quotation_marks_in_a_cell(tmp_path, content, cell):
    raw = table(tmp_path / "e.csv", f"user,title,item\nu,{content},a\nv,plain,b\n")
    assert cells(raw) == [("u", cell, "a"), ("v", "plain", "b")]
    assert len([f for f in raw.findings if "a backslash escapes" in f.what]) == (
        content.count("\\") > 0 and cell != content.strip('"').replace('""', '"')
    )


def test_a_quotation_mark_that_is_not_closed_swallows_no_row(tmp_path):
    raw = table(tmp_path / "e.csv", 'user,item,review\nu,a,"open\nv,b,good\nw,c,bad\n')
    assert cells(raw) == [("u", "a", '"open'), ("v", "b", "good"), ("w", "c", "bad")]
    assert found(raw, "quotation marks do not enclose cells")[0] == 1
    # Where other cells need the quotation marks, rows within a cell are reported.
    raw = table(tmp_path / "e.csv", 'user,item,review\nu,a,"one, two"\nv,b,"open\nw,c,"bad"\n')
    assert found(raw, "looks like a row of the table") == (1, "e.csv:3")
    raw = table(tmp_path / "e.csv", 'user,item,review\nu,a,"one\ntwo, three"\n')
    assert len(raw.frame) == 1 and not raw.findings


def test_spaces_before_quotation_marks_are_refused(tmp_path):
    with pytest.raises(DataError, match="Remove the spaces before the quotation marks"):
        table(tmp_path / "e.csv", '"user", "item"\n"u", "a"\n')


def test_json_in_a_file_named_csv(tmp_path):
    assert cells(table(tmp_path / "e.csv", '{"user": "u", "item": "a"}\n')) == [("u", "a")]


def test_sequences_of_ids_in_recbole_files_are_lists(tmp_path):
    raw = table(tmp_path / "x.inter", "user_id:token\titem_id:token_seq\nu\ta b\nv\tc\n")
    assert raw.frame["item_id"].tolist() == [["a", "b"], ["c"]]


def test_values_of_mongodb_lose_their_types(tmp_path):
    records = [
        {"user": {"$oid": "5f"}, "item": {"$numberLong": "76561197970982401"}, "at": {"$date": "2014-05-26T01:02:03Z"}},
        {"user": "v", "item": [{"$oid": "6a"}], "at": {"$date": {"$numberLong": "1401066123000"}}},
    ]
    raw = table(tmp_path / "e.jsonl", "\n".join(map(json.dumps, records)))
    assert raw.frame.to_numpy().tolist() == [
        ["5f", "76561197970982401", "2014-05-26T01:02:03Z"],
        ["v", ["6a"], "2014-05-26T01:02:03.000"],
    ]


def test_escaped_quotation_marks_are_reported(tmp_path):
    raw = table(tmp_path / "e.csv", 'user,title\nu,x\nu,"He said \\"no\\""\n')
    assert found(raw, "a backslash escapes quotation marks") == (2, "e.csv:3")


def test_separators_after_escaped_quotation_marks(tmp_path):
    content = "user,item,note\n" + r'u,a,"some \"text\", so long, as it is"' + "\n"
    raw = table(tmp_path / "e.csv", content + r'u,b,"more \"text\", and more"' + "\n")
    assert cells(raw) == [("u", "a", 'some "text", so long, as it is'), ("u", "b", 'more "text", and more')]


def test_json_in_unquoted_cells_keeps_its_backslashes(tmp_path):
    content = 'user\tdata\nu\t{"title": "a \\"b\\" c"}\n'
    assert cells(table(tmp_path / "e.tsv", content)) == [("u", r'{"title": "a \"b\" c"}')]


def test_single_quotes_enclose_cells_where_they_enclose_the_header(tmp_path):
    content = "'user','item','title'\n'u','a','It''s, \"so\"'\n'v',b,\"x\"\n"
    assert cells(table(tmp_path / "e.csv", content)) == [("u", "a", 'It\'s, "so"'), ("v", "b", '"x"')]
    assert cells(table(tmp_path / "e.csv", "user,title\nu,'tis\nv,'so'\n")) == [("u", "'tis"), ("v", "'so'")]


@pytest.mark.parametrize(
    ("above", "line"),
    [
        ("# exported 2024-01-01", 1),
        ("Report of all ratings, of the shop, by month, and more, and more", 1),
        ("\n-- query 17", 2),
        ("#\n# two lines\n", 1),
        ("Title;of;a;sheet", 1),
    ],
)
def test_lines_above_the_header_are_refused(tmp_path, above, line):
    content = f"{above}\nuser,item,rating\n" + "u,a,5\n" * 9
    at = content.split("\n").index("user,item,rating") + 1
    with pytest.raises(DataError) as error:
        table(tmp_path / "e.csv", content)
    assert f"e.csv:{line}: expected a header of 3 columns" in str(error.value)
    assert f"found {above.strip().splitlines()[0][:50]!r}"[:-1] in str(error.value)
    assert f"Is the header line {at}, 'user,item,rating'? Then delete the lines above it" in str(error.value)


def test_a_title_that_a_spreadsheet_filled_up_to_the_width_of_the_table_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"e\.csv:1: expected the names of the columns, found 'Ratings of May,,'\."
    ) as error:
        table(tmp_path / "e.csv", "Ratings of May,,\n,,\nuser,item,rating\nu,a,5\n")
    assert str(error.value).endswith("Is the header line 3, 'user,item,rating'? Then delete the lines above it.")
    # Neither names that only a mapping knows nor values that are usual names make a row a header.
    assert cells(table(tmp_path / "e.csv", "Kunde,Ware,\nu,book,1\n")) == [("u", "book", "1")]


def test_a_header_that_lacks_a_column_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"expected a header of 3 columns.*found 'user,item'\."):
        table(tmp_path / "e.csv", "user,item\n1,u,a\n2,v,b\n")  # as R writes row names


def test_a_header_that_cannot_be_split_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"e\.csv:1: expected a header, found '\"'"):
        table(tmp_path / "e.csv", '"')
    with pytest.raises(
        DataError, match=r"expected a header of 4 columns.*separated by ','; found 'user,item,rating'\. If"
    ):
        table(tmp_path / "e.csv", "user,item,rating\n1,2,3,\n1,3,3,\n")  # each row ends in a separator


def test_repeated_names_of_columns_stay_apart(tmp_path):
    assert list(table(tmp_path / "e.csv", "a,a,a.2,a\n1,2,3,4\n").frame) == ["a", "a.3", "a.2", "a.4"]


# --- Folders of parts ------------------------------------------------------------------------------------------------


def test_a_folder_as_spark_writes_it(tmp_path):
    for day, users in {"2024-01-01": ["u", "v"], "2024-01-02": ["w"], "__HIVE_DEFAULT_PARTITION__": ["x"]}.items():
        for country in ("DE", "a%2Fb%20c"):
            folder = tmp_path / "log" / f"day={day}" / f"country={country}"
            name = f"part-00000-{uuid.uuid4()}.c000.snappy.parquet"
            write_parquet(folder / name, {"user": users, "item": [1] * len(users)})
            (folder / f".{name}.crc").write_bytes(b"crc")
    (tmp_path / "log" / "_SUCCESS").touch()
    (tmp_path / "log" / "_metadata").write_bytes(b"PAR1")
    raw = table(tmp_path / "log")
    assert list(raw.frame) == ["user", "item", "day", "country"]
    assert len(raw.frame) == 8
    rows = set(cells(raw))
    assert ("u", 1, "2024-01-01", "DE") in rows and ("x", 1, None, "a/b c") in rows
    assert raw.findings == ()
    assert raw.example(7).startswith("day=__HIVE_DEFAULT_PARTITION__/country=a%2Fb%20c/part-00000")
    assert raw.example(7).endswith(":1")


def test_partitions_are_columns_like_any_other(tmp_path):
    for user, day in (("7", "2024-01-02"), ("8", "2024-01-01")):
        table(tmp_path / "log" / f"user_id={user}" / f"date={day}" / "data.csv", "item\na\n")
    data = read_dataset(DataConfig(events="log"), tmp_path)
    assert data.events.user_id.tolist() == ["8", "7"] or data.events.user_id.tolist() == ["7", "8"]
    assert data.ordered
    assert data.name == "log"
    (tmp_path / "elsewhere").mkdir()
    alone = table(tmp_path / "log" / "user_id=7" / "date=2024-01-02" / "data.csv")
    assert cells(alone) == [("a", "7", "2024-01-02")]
    inner = table(tmp_path / "log" / "user_id=7")
    assert cells(inner) == [("a", "7", "2024-01-02")]


def test_a_column_of_the_file_goes_before_the_folder(tmp_path):
    table(tmp_path / "log" / "day=1" / "a.csv", "user,day\nu,1\nv,2\n")
    raw = table(tmp_path / "log")
    assert cells(raw) == [("u", "1"), ("v", "2")]
    assert found(raw, "the folder says day=1")[0] == 1


def test_folders_without_a_column_name_are_kept(tmp_path):
    for day in ("01", "02"):
        table(tmp_path / "log" / "2024" / day / "events.jsonl", '{"user": "u"}\n')
    assert cells(table(tmp_path / "log")) == [("u", "2024/01"), ("u", "2024/02")]


@pytest.mark.parametrize(
    "names",
    [
        ["part-00000.csv", "part-00001.csv"],
        ["part.0.csv.gz", "part.1.csv.gz"],
        ["000000_0", "000001_0"],
        ["events-000000000000.csv", "events-000000000001.csv", "_SUCCESS"],
        ["data_0_9_0.csv", "data_0_10_0.csv"],
        ["2019-Oct.csv", "2019-Nov.csv"],
        ["a.txt", "b.txt", "README.md", "b.txt.md5"],
    ],
)
def test_parts_of_any_name(tmp_path, names):
    files = [n for n in names if not n.startswith("_") and not n.endswith((".md", ".md5"))]
    for i, name in enumerate(files):
        content = f"user,item\nu,{i}\n".encode()
        table(tmp_path / "log" / name, gzip.compress(content) if name.endswith("gz") else content)
    for name in set(names) - set(files):
        (tmp_path / "log" / name).write_bytes(b"# text")
    raw = table(tmp_path / "log")
    assert sorted(cells(raw)) == [("u", str(i)) for i in range(len(files))]
    if files == names[:2] and "10" in names[1]:
        assert cells(raw)[1] == ("u", "1")  # 9 goes before 10
    if "README.md" in names:
        assert found(raw, "files beside the parts, not read: README.md") == (1, "log")


def test_findings_of_parts_are_added_up(tmp_path):
    for i in range(3):
        table(tmp_path / "log" / f"part-{i}.csv", f"user,item\nu,{i}\n\nbroken\n")
    raw = table(tmp_path / "log")
    assert found(raw, "blank row") == (3, "part-0.csv:3")
    assert found(raw, "found 1 fields, expected 2") == (3, "part-0.csv:4, 'broken'")
    assert raw.unreadable == 3
    assert raw.example(2, "item") == "part-2.csv:2, column 'item': '2'"
    data = read_dataset(DataConfig(events="log", max_bad_rows=0.5), tmp_path)
    assert data.report.rows_in["events"] == 9 and data.report.rows_kept["events"] == 3


def test_empty_parts(tmp_path):
    for name, content in {"part-0.csv": "", "part-1.csv": "user,item\n", "part-2.csv": "user,item\nu,a\n"}.items():
        (tmp_path / name).write_text(content)
    assert cells(table(tmp_path)) == [("u", "a")]
    (tmp_path / "part-2.csv").write_text("user,item\n")
    with pytest.raises(DataError, match=r"is empty|has a header but no rows"):
        table(tmp_path)


def test_columns_that_some_parts_lack_are_reported(tmp_path):
    big = 2**53
    write_parquet(tmp_path / "part-0.parquet", {"user": [big + 1], "item": ["a"]})
    write_parquet(tmp_path / "part-1.parquet", {"user": pa.array([1.5]), "item": ["b"], "n": [big + 1]})
    raw = table(tmp_path)
    assert cells(raw) == [(big + 1, "a", None), (1.5, "b", big + 1)]
    assert found(raw, "the column 'n' is missing in 1 of 2 parts") == (1, "part-0.parquet")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"ratings.csv": "user,item\nu,a\n", "movies.csv": "item,title\na,T\n"}, r"several tables: .*Name one file"),
        ({"part-0.csv": "user,item\nu,a\n", "part-1.csv": "v,b\nw,c\n"}, r"several tables: .*each with a header"),
        ({"a.csv": "user,item\nu,a\n", "a.jsonl": '{"user": "u"}'}, r"several formats \(\.csv, \.jsonl\)"),
        ({"a.csv": "user,item\nu,a\n", "a.csv.gz": "user,item\nu,a\n"}, r"a\.csv and a\.csv\.gz, the same file twice"),
        ({"_delta_log/0.json": "{}", "part-0.csv": "user,item\nu,a\n"}, "is a Delta Lake table"),
        ({".hoodie/x": "{}", "part-0.csv": "user,item\nu,a\n"}, "is a Hudi table"),
        ({"_SUCCESS": ""}, "contains no file to read"),
    ],
)
def test_folders_that_are_no_table(tmp_path, files, message):
    for name, content in files.items():
        path = tmp_path / "log" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        table(tmp_path / "log")


def test_folders_of_parts_in_a_source(tmp_path):
    for i, day in enumerate(("2024-01-01", "2024-01-02")):
        table(tmp_path / "shop" / "events.csv" / f"date={day}" / "part-0.csv", f"user,item\nu,{i}\n")
        table(tmp_path / "shop" / "items" / f"part-{i}.csv", f"item,title\n{i},T{i}\n")
    data = read_dataset(DataConfig(source="shop"), tmp_path)
    assert data.items.title.tolist() == ["T0", "T1"]
    assert data.events.item_id.tolist() == ["0", "1"] and data.ordered
    alone = read_dataset(DataConfig(source="shop/events.csv"), tmp_path)
    assert alone.events.item_id.tolist() == ["0", "1"] and alone.ordered


def test_a_source_whose_folders_hold_several_tables_is_searched_as_before(tmp_path):
    table(tmp_path / "book-ratings" / "ratings.csv", "user,item\nu,a\n")
    table(tmp_path / "book-ratings" / "books.csv", "item,title\na,T\n")
    assert read_dataset(DataConfig(source="."), tmp_path).items.title.tolist() == ["T"]


# --- Limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst", "lz4", "zip", "plain"])
def test_the_size_is_limited_while_decompressing(tmp_path, kind):
    content = b"user,item\n" + b"u,a\n" * 300_000
    path = tmp_path / "e.csv"
    path.write_bytes(
        {
            "gz": lambda: gzip.compress(content),
            "bz2": lambda: bz2.compress(content),
            "xz": lambda: lzma.compress(content),
            "zst": lambda: arrow_compressed(content, "zstd"),
            "lz4": lambda: arrow_compressed(content, "lz4"),
            "zip": lambda: zipped({"e.csv": content}),
            "plain": lambda: content,
        }[kind]()
    )
    with pytest.raises(DataError, match=r"e\.csv: found .* bytes .*expected at most data\.max_bytes = 1,000,000"):
        table(path, max_bytes=1_000_000)
    assert len(table(path, max_bytes=3_000_000).frame) == 300_000


def test_decompression_stops_at_the_limit(tmp_path):
    import tracemalloc

    path = tmp_path / "e.csv"
    path.write_bytes(gzip.compress(b"u,a\n" * 50_000_000, compresslevel=1))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"data\.max_bytes"):
            table(path, max_bytes=10_000_000)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000  # of 200 MB
    finally:
        tracemalloc.stop()


def test_an_archive_that_holds_archives_without_end_is_refused(tmp_path):
    content = CSV
    for _ in range(9):
        content = gzip.compress(content)
    with pytest.raises(DataError, match="compressed more than 3 times"):
        table(tmp_path / "e.csv", content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("e.csv", b"user,item\n" + b"u,a\n" * 11),
        ("e.csv", b"user,item\r" + b"u,a\r" * 11),
        ("e.csv", b"user,item\n" + b"u,a\n" * 10 + b"u,a"),
        ("e.jsonl", b'{"user": 1}\n' * 11),
        ("e.json", json.dumps([{"user": 1}] * 11).encode()),
        ("u.data", b"1\t2\t3\t4\n" * 11),
    ],
)
def test_the_number_of_rows_is_limited(tmp_path, name, content):
    with pytest.raises(DataError, match=r"found 11 rows or more; expected at most data\.max_rows = 10\."):
        table(tmp_path / name, content, max_rows=10)
    assert len(table(tmp_path / name, content, max_rows=11).frame) == 11


def test_parquet_is_limited_by_its_metadata(tmp_path):
    path = write_parquet(tmp_path / "e.parquet", {"user": pa.array(np.zeros(6_000_000, dtype=np.int8))})
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"found 6,000,000 rows or more; .*data\.max_rows = 5,000,000"):
        table(path, max_rows=5_000_000)
    assert DataConfig().max_rows < 100_000_000
    wide = write_parquet(tmp_path / "w.parquet", {f"c{i}": [1] for i in range(20)})
    with pytest.raises(DataError, match=r"found 20 columns or more; .*data\.max_columns = 10"):
        table(wide, max_columns=10)
    value = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2_000, dtype=np.int32)), ["x" * 100_000])
    long = write_parquet(tmp_path / "l.parquet", {"title": value})
    assert long.stat().st_size < 1_000_000
    with pytest.raises(DataError, match=r"bytes .*data\.max_bytes = 50,000,000"):
        table(long, max_bytes=50_000_000)


def test_the_parts_of_a_folder_are_limited_together(tmp_path):
    for i in range(4):
        table(tmp_path / "log" / f"part-{i}.csv", "user,item\nu,a\nu,b\nu,c\n")
    for limit in ({"max_rows": 11}, {"max_bytes": 60}):
        with pytest.raises(DataError, match=rf"data\.{next(iter(limit))}"):
            table(tmp_path / "log", **limit)
    assert len(table(tmp_path / "log", max_rows=12, max_bytes=100).frame) == 12


def test_a_million_columns_are_refused_at_once(tmp_path):
    header = ",".join(f"c{i}" for i in range(1_000_000))
    with pytest.raises(DataError, match=r"found 1,000,000 columns or more; .*data\.max_columns = 10,000"):
        table(tmp_path / "e.csv", f"{header}\n")


def test_keys_of_json_are_limited(tmp_path):
    many = json.dumps({f"k{i}": i for i in range(300_000)})
    with pytest.raises(DataError, match=r"columns or more; .*data\.max_columns = 10,000"):
        table(tmp_path / "e.jsonl", f"{many}\n")
    other = "\n".join(json.dumps({f"k{i}": i}) for i in range(101))
    with pytest.raises(DataError, match=r"found 101 columns or more"):
        table(tmp_path / "e.jsonl", other, max_columns=100)
    assert len(table(tmp_path / "e.jsonl", other, max_columns=101).frame.columns) == 101
    with pytest.raises(DataError, match=r"bytes for .* rows of .* columns or more; .*data\.max_bytes = 1,000,000"):
        table(tmp_path / "e.jsonl", "\n".join(json.dumps({f"k{i}": i}) for i in range(1_000)), max_bytes=1_000_000)


@pytest.mark.parametrize("nested", ["[" * 33 + "]" * 33, '{"a":' * 32 + "1" + "}" * 32, "[" * 100_000 + "]" * 100_000])
@pytest.mark.parametrize("form", ['{"user": 1}\n{"user": %s}\n', '[{"user": 1}, {"user": %s}]'])
def test_the_depth_of_json_is_limited(tmp_path, form, nested):
    with pytest.raises(DataError, match=r"e\.json:2: expected at most data\.max_depth = 32 levels .* found more"):
        table(tmp_path / "e.json", form % nested)
    if len(nested) < 1_000:
        assert len(table(tmp_path / "e.json", form % nested, max_depth=34).frame) == 2
    assert len(table(tmp_path / "e.json", form % json.dumps("[" * 99)).frame) == 2  # in a string


def test_the_depth_of_parquet_is_limited(tmp_path):
    kind, value = pa.int64(), 1
    for _ in range(5):
        kind, value = pa.list_(kind), [value]
    path = write_parquet(tmp_path / "e.parquet", {"x": pa.array([value], kind)})
    with pytest.raises(DataError, match=r"found 6 levels of nested values or more; .*data\.max_depth = 5"):
        table(path, max_depth=5)
    assert cells(table(path, max_depth=6)) == [([[[[[1]]]]],)]


def test_broken_arrays(tmp_path):
    for content, message in (
        ('[{"user": 1}, {"user":', "element 2"),
        ('[{"user": 1} {"user": 2}]', "expected ',' or ']', found"),
        ('[{"user": 1}] and more', "expected the end of the file"),
        ("[]", "contains no JSON object"),
    ):
        with pytest.raises(DataError, match=message):
            table(tmp_path / "e.json", content)


# --- Parquet ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "index",
    [
        pd.Index(["u", "v"], name="user_id"),
        pd.RangeIndex(7, 9, name="user_id"),
        pd.RangeIndex(20, 0, -10, name="user_id"),
        pd.date_range("2024-01-01", periods=2, name="user_id"),
        pd.CategoricalIndex(["u", "v"], name="user_id"),
    ],
)
def test_a_named_index_is_a_column(tmp_path, index):
    frame = pd.DataFrame({"item": ["a", "b"]}, index=index)
    frame.to_parquet(tmp_path / "e.parquet")
    raw = table(tmp_path / "e.parquet")
    assert raw.frame["user_id"].astype(object).tolist() == frame.reset_index()["user_id"].astype(object).tolist()
    assert raw.frame["item"].tolist() == ["a", "b"]


def test_single_precision_in_lists_keeps_its_shortest_spelling(tmp_path):
    numbers = [[0.1, 16777216, float("inf")], None, [1e-7, None, -3.4e38]]
    write_parquet(tmp_path / "e.parquet", {"x": pa.array(numbers, pa.list_(pa.float32()))})
    assert cells(table(tmp_path / "e.parquet")) == [(cell,) for cell in numbers]


def test_indexes_of_other_kinds(tmp_path):
    frame = pd.DataFrame({"rating": [1, 2]}, index=pd.MultiIndex.from_tuples([("u", 1), ("v", 2)], names=["user", "x"]))
    frame.to_parquet(tmp_path / "e.parquet")
    assert table(tmp_path / "e.parquet").frame.to_dict("list") == {"rating": [1, 2], "user": ["u", "v"], "x": [1, 2]}
    pd.DataFrame({"user": ["u"]}).to_parquet(tmp_path / "e.parquet")
    assert list(table(tmp_path / "e.parquet").frame) == ["user"]
    pd.DataFrame({"rating": [1]}, index=["u"]).to_parquet(tmp_path / "e.parquet")
    assert cells(table(tmp_path / "e.parquet")) == [(1, "u")]
    pd.DataFrame({"user": ["v"]}, index=pd.Index(["u"], name="user")).to_parquet(tmp_path / "e.parquet")
    assert sorted(table(tmp_path / "e.parquet").frame.iloc[0]) == ["u", "v"]


def test_nullable_integers_of_pandas_keep_their_type(tmp_path):
    ids = [76561197970982401, 76561197970982402, None]
    frame = pd.DataFrame({"user": pd.array(ids, "UInt64"), "n": pd.array([1, 2, None], "Int16"), 7: ["a", "b", "c"]})
    frame.columns = frame.columns.astype(str)
    frame.to_parquet(tmp_path / "e.parquet")
    raw = table(tmp_path / "e.parquet")
    assert [str(t) for t in raw.frame.dtypes[:2]] == ["uint64[pyarrow]", "int16[pyarrow]"]
    assert raw.frame["user"].nunique() == 2


def test_nested_values_are_those_of_json(tmp_path):
    record = pa.struct([("id", pa.int64()), ("name", pa.string()), ("kinds", pa.list_(pa.string()))])
    columns = {
        "struct": pa.array([{"id": 1, "name": "x", "kinds": ["a"]}, None], record),
        "structs": pa.array([[{"id": 1, "name": "x", "kinds": ["a", "b"]}], []], pa.list_(record)),
        "map": pa.array([[("k", 1), ("l", None)], []], pa.map_(pa.string(), pa.int64())),
        "maps": pa.array([[[("k", ["v"])]], None], pa.list_(pa.map_(pa.string(), pa.list_(pa.string())))),
        "fixed": pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2)),
        "mixed": pa.array(
            [[{"b": b"x", "d": datetime.date(2024, 1, 2), "m": decimal.Decimal("1.50")}], None],
            pa.list_(pa.struct([("b", pa.binary()), ("d", pa.date32()), ("m", pa.decimal128(5, 2))])),
        ),
    }
    raw = table(write_parquet(tmp_path / "e.parquet", columns))
    assert cells(raw)[0] == (
        {"id": 1, "name": "x", "kinds": ["a"]},
        [{"id": 1, "name": "x", "kinds": ["a", "b"]}],
        {"k": 1, "l": None},
        [{"k": ["v"]}],
        [1, 2],
        [{"b": "x", "d": "2024-01-02", "m": 1.5}],
    )
    assert cells(raw)[1] == (None, [], {}, None, [3, 4], None)


ID = uuid.UUID("0123e567-e89b-12d3-a456-4266141740ff")


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([decimal.Decimal("4.50"), None], pa.decimal128(5, 2), [4.5, None]),
        ([decimal.Decimal("12345678901234567890123456789.5"), None], pa.decimal128(38, 1),
         ["12345678901234567890123456789.5", None]),
        ([decimal.Decimal("76561197970982401")] * 2, pa.decimal128(38, 0), [76561197970982401] * 2),
        ([decimal.Decimal("1234567890123456789012")] * 2, pa.decimal128(38, 0), ["1234567890123456789012"] * 2),
        ([decimal.Decimal("0E-18"), decimal.Decimal(5)], pa.decimal128(38, 18), ["0", "5"]),
        ([decimal.Decimal("76561197970982401")], pa.decimal128(38, 9), ["76561197970982401"]),
        (["a", None], pa.dictionary(pa.int32(), pa.string()), ["a", None]),
        ([5, 7], pa.dictionary(pa.int32(), pa.int64()), [5, 7]),
        ([b"caf\xc3\xa9", None], pa.binary(), ["café", None]),
        ([b"ab", b"cd"], pa.binary(2), ["ab", "cd"]),
        ([b"\xff\x01", b"\xfe\x01"], pa.binary(), ["ff01", "fe01"]),
        ([ID.bytes, None], pa.binary(16), [ID.hex, None]),
        ([ID.bytes, None], pa.uuid(), [str(ID), None]),
        ([datetime.date(2024, 2, 29), None], pa.date32(), ["2024-02-29", None]),
        ([datetime.date(2024, 2, 29), None], pa.date64(), ["2024-02-29", None]),
        ([datetime.time(8, 36, 57), None], pa.time32("s"), [datetime.time(8, 36, 57), None]),
        ([1_500, None], pa.duration("ms"), [1.5, None]),
        (["a", None], pa.large_string(), ["a", None]),
        (["a", None], pa.string_view(), ["a", None]),
        ([b"a", None], pa.binary_view(), ["a", None]),
        ([None, None], pa.null(), [None, None]),
        ([True, None], pa.bool_(), [True, None]),
    ],
)  # fmt: skip
def test_types_of_columns(tmp_path, values, kind, expected):
    array = pa.array(values, pa.binary(16)).cast(kind) if kind == pa.uuid() else pa.array(values, kind)
    raw = table(write_parquet(tmp_path / "e.parquet", {"x": array}))
    assert [v for (v,) in cells(raw)] == expected
    assert ("hexadecimal" in str(raw.findings)) == (expected[0] in ("ff01", ID.hex))


def test_late_years_in_int96_do_not_overflow(tmp_path):
    times = pa.array([datetime.datetime(9999, 12, 31), datetime.datetime(2024, 1, 1)], pa.timestamp("us"))
    path = write_parquet(tmp_path / "e.parquet", {"time": times}, use_deprecated_int96_timestamps=True)
    assert [t.year for (t,) in cells(table(path))] == [9999, 2024]


# --- Real data -------------------------------------------------------------------------------------------------------


@shared
@pytest.mark.shared
@pytest.mark.parametrize("compress", [bz2.compress, lambda content: arrow_compressed(content, "zstd")])
def test_a_real_file_in_another_compression(tmp_path, compress):
    content = (SHARED / "movielens-small" / "movies.csv").read_bytes()
    raw = table(tmp_path / "movies.csv", compress(content))
    assert raw.frame.equals(table(SHARED / "movielens-small" / "movies.csv").frame)
    assert len(raw.frame) == 9742 and raw.findings == ()


def test_the_header_again_and_lines_of_dashes_are_no_rows(tmp_path):
    raw = table(tmp_path / "a.csv", CSV + CSV)
    assert cells(raw) == CELLS * 2 and found(raw, "the header again") == (1, "a.csv:5")
    raw = table(tmp_path / "b.csv", "user | item\n-----|-----\nu | a\n- | -\n")
    assert len(raw.frame) == 2 and found(raw, "a line of dashes") == (1, "b.csv:2")


def test_cells_that_are_kept_from_excel(tmp_path):
    raw = table(tmp_path / "a.csv", 'user,item\n"=""007""",a\n="008",<a href="x">\n')
    assert cells(raw) == [("007", "a"), ("008", '<a href="x">')]
    assert found(raw, 'cells written as ="00123"') == (2, "a.csv:2")


def test_cells_that_python_printed_as_bytes(tmp_path):
    raw = table(
        tmp_path / "a.csv", "user,title\nb'7',b'Am\\xc3\\xa9lie'\nb'8',\"b\"\"It's\"\"\"\n9,b'a' b'c'\n10,b'\\d'\n"
    )
    assert cells(raw) == [("7", "Amélie"), ("8", "It's"), ("9", "b'a' b'c'"), ("10", r"b'\d'")]
    assert found(raw, "as Python prints bytes") == (2, "a.csv:2")


def test_the_separator_of_hive(tmp_path):
    assert cells(table(tmp_path / "a.csv", CSV.replace(b",", b"\x01"))) == CELLS


def test_bytes_of_another_encoding_stay_different(tmp_path):
    raw = table(tmp_path / "a.csv", b"user,item\n\x81\xe9,a\n\x8d\xe9,b\n\xe9,c\n")
    assert raw.frame["user"].nunique() == 3
    assert found(raw, "not UTF-8")[0] == 3 and found(raw, "with bytes that Windows-1252 does not have")[0] == 2


@pytest.mark.parametrize(
    ("text", "encoding", "doubted"),
    [
        ("Москва", "cp1251", True),
        ("ソニー", "shift_jis", True),
        ("商品", "gbk", True),
        ("서울", "euc_kr", True),
        ("Αθήνα", "cp1253", True),
        ("Größe", "cp1252", False),
        ("été à Nîmes, « déjà »", "cp1252", False),
    ],
)
def test_text_that_is_hardly_windows_1252_is_doubted(tmp_path, text, encoding, doubted):
    raw = table(tmp_path / "a.csv", f"user,item\nu,{text}\n".encode(encoding))
    assert found(raw, "not UTF-8: read as Windows-1252") == (1, "a.csv:2")
    assert [f.count for f in raw.findings if f.action == "doubted"] == [1] * doubted


@pytest.mark.parametrize(
    ("orient", "advice"),
    [
        *((o, "orient='records', lines=True") for o in ("columns", "index", "split")),
        ("table", "whose field 'data' holds"),
    ],
)
def test_one_json_object_for_the_whole_table(tmp_path, orient, advice):
    pd.read_csv(io.BytesIO(CSV)).to_json(tmp_path / "a.json", orient=orient)
    with pytest.raises(DataError, match=advice):
        table(tmp_path / "a.json")
    with pytest.raises(DataError, match="whose field 'rows' holds the rows"):
        table(tmp_path / "b.json", json.dumps({"rows": [{"user": "u", "item": "a"}], "next": None}, indent=1))
    assert cells(table(tmp_path / "c.json", '{"user": "u", "item": [{"id": "a"}]}')) == [("u", [{"id": "a"}])]


@pytest.mark.parametrize("content", ["INSERT INTO e VALUES (1, 2);", "%%MatrixMarket matrix", "@relation x\n@data"])
def test_scripts_and_formats_that_only_look_like_text(tmp_path, content):
    with pytest.raises(DataError, match=r"is an SQL script|is a Matrix Market file|is an ARFF file"):
        table(tmp_path / "e.csv", content)
