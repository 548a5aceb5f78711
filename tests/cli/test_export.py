import json


def test_prints_the_folder_alone(program, libraries, tmp_path):
    answer = program("export", tmp_path / "run", tmp_path / "saved")
    assert answer.out == f"{tmp_path / 'saved' / '1'}\n"
    assert libraries.exported == [(tmp_path / "run", tmp_path / "saved")]


def test_the_index_may_be_chosen(program, libraries, tmp_path):
    program("export", tmp_path / "run", tmp_path / "saved")
    program("export", tmp_path / "run", tmp_path / "saved", "--index", "scann")
    assert libraries.indexes == ["auto", "scann"]


def test_json(program, libraries, tmp_path):
    answer = program("export", tmp_path / "run", tmp_path / "saved", "--json")
    assert json.loads(answer.out) == {"folder": str(tmp_path / "saved" / "1"), "new_items": None}


def test_new_items_are_counted(program, libraries, tmp_path):
    arguments = ("export", tmp_path / "run", tmp_path / "saved", "--items", tmp_path / "new.jsonl")
    answer = program(*arguments)
    assert answer.out == f"{tmp_path / 'saved' / '1'}\n"
    assert "new.jsonl: 1,200 added, 1 replaced, 0 unchanged, 3 dropped\n" in answer.err
    assert json.loads(program(*arguments, "--json").out)["new_items"] == {
        "file": "new.jsonl", "added": 1200, "replaced": 1, "unchanged": 0, "dropped": 3,
    }  # fmt: skip
