import json


def test_prints_the_folder_alone(program, libraries, tmp_path):
    answer = program("export", tmp_path / "run", tmp_path / "saved")
    assert answer.out == f"{tmp_path / 'saved' / '1'}\n"
    assert libraries.exported == [(tmp_path / "run", tmp_path / "saved")]


def test_json(program, libraries, tmp_path):
    answer = program("export", tmp_path / "run", tmp_path / "saved", "--json")
    assert json.loads(answer.out) == {"folder": str(tmp_path / "saved" / "1")}
