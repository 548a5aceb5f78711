import json

import pytest

EVENTS = "user,item,rating\n1,2,5\n1,3,4\n2,3,1\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "events.csv").write_text(EVENTS)
    (tmp_path / "raw" / "items.csv").write_text("item,title\n2,Two\n3,Three\n")
    return tmp_path


def test_describe_prints_figures_and_cleaning(program, folder):
    answer = program("data", "describe", folder / "raw")
    assert answer.code == 0
    assert "events: 3 rows read, 3 kept" in answer.out


def test_describe_prints_each_field_on_its_own_line(program, folder):
    (folder / "raw" / "events.csv").write_text("user,item,rating,device\n1,2,5,tv\n1,3,4,phone\n2,3,1,tv\n")
    lines = [line.strip(" │\n") for line in program("data", "describe", folder / "raw").out.splitlines()]
    assert any(line.endswith("event.rating: number, median 4, spread 1.483") for line in lines)
    assert "request.device: category, 2 values (tv, phone)" in lines


def test_features_prints_a_table_or_json(program, folder):
    rows = "".join(f"{u},{i},{'tv' if i % 2 else 'phone'},{u % 2}\n" for u in range(20) for i in range(10))
    (folder / "raw" / "events.csv").write_text("user,item,device,homework\n" + rows)
    (folder / "raw" / "items.csv").write_text("item,title,shape\n" + "".join(f"{i},T{i},round\n" for i in range(10)))
    printed = program("data", "features", folder / "raw")
    assert printed.code == 0 and "raw: 200 of 200 events" in printed.out
    assert "To leave these fields out: --set 'data.fields={" in printed.out
    assert '"item.shape": {"use": false}' in printed.out and "rating" not in printed.out
    told = json.loads(program("data", "features", folder / "raw", "--json", "--rows", "100").out)
    assert told["sampled"] == 100 and {field["key"] for field in told["fields"]} >= {"request.device", "item.shape"}


def test_describe_takes_files_a_folder_or_a_config(program, folder):
    (folder / "a.yaml").write_text("data: {source: raw}")
    by_folder = json.loads(program("data", "describe", folder / "raw", "--json").out)
    by_config = json.loads(program("data", "describe", folder / "a.yaml", "--json").out)
    files = ["--events", folder / "raw" / "events.csv", "--items", folder / "raw" / "items.csv"]
    by_files = json.loads(program("data", "describe", *files, "--json").out)
    assert by_folder["fingerprint"] == by_config["fingerprint"] == by_files["fingerprint"]
    assert by_folder["cleaning"]["rows_in"] == {"events": 3, "items": 2}


def test_settings_can_be_given(program, folder):
    answer = program("data", "describe", folder / "raw", "--json", "--set", "data.min_user_events=2")
    assert json.loads(answer.out)["users"] == 1


def test_prepare_writes_what_describe_reads(program, folder):
    written = json.loads(program("data", "prepare", folder / "raw", "--out", folder / "clean", "--json").out)
    read = json.loads(program("data", "describe", folder / "clean", "--json").out)
    assert written.pop("folder") == str(folder / "clean")
    assert {**read, "name": "raw"} == written


def test_prepare_marks_the_test_events_of_a_fixed_split(program, folder):
    (folder / "test.csv").write_text("user,item\n1,3\n9,9\n")
    fixed = ["--set", "split.kind=fixed", "--set"]
    by_rows = program("data", "prepare", folder / "raw", "--out", folder / "clean", *fixed, "split.test_events=1:3")
    assert by_rows.code == 0 and "test_events: 2 rows read, 2 kept" in by_rows.out
    assert json.loads(program("data", "describe", folder / "clean", "--json").out)["test_events"] == 2
    by_file = program("data", "describe", folder / "raw", *fixed, f"split.test_events={folder / 'test.csv'}")
    assert "test_events: 2 rows read, 1 kept" in by_file.out
    assert "test_events: 1 dropped: named by split.test_events" in by_file.out
    other = program("data", "describe", folder / "clean", *fixed, "split.test_events=0:1")
    assert other.code == 2 and "expected 1:3 for the saved data set" in other.err
    random = program("data", "describe", folder / "raw", "--json", "--set", "split.test_events=0:1")
    assert json.loads(random.out)["test_events"] == 0  # read with split.kind fixed alone


def test_prepare_remembers_that_reuse_is_the_task(program, folder):
    (folder / "raw" / "events.csv").write_text(EVENTS + "1,2,5\n")
    reuse = ["--set", "data.repeats=all"]
    assert program("data", "prepare", folder / "raw", "--out", folder / "clean", *reuse).code == 0
    told = json.loads(program("data", "describe", folder / "clean", "--json").out)
    assert (told["repeats"], told["repeated_pairs"], told["events"]) == (True, 1, 4)
    assert not json.loads(program("data", "describe", folder / "raw", "--json").out)["repeats"]


def test_prepare_extends_a_saved_data_set(program, folder):
    assert program("data", "prepare", folder / "raw", "--out", folder / "clean").code == 0
    (folder / "more.csv").write_text("item,title\n10,Ten\n2,Zwei\n1,One\n")
    extend = ["data", "prepare", "--extend", folder / "clean", "--out", folder / "clean"]
    written = json.loads(program(*extend, "--items", folder / "more.csv", "--json").out)
    assert (written["items"], written["events"], written["name"]) == (4, 3, "raw")
    from tfllmrec.data import Dataset

    assert Dataset.load(folder / "clean").items.values.tolist() == [
        ["2", "Zwei"], ["3", "Three"], ["1", "One"], ["10", "Ten"],
    ]  # fmt: skip
    assert program(*extend).code == 2
    assert program("data", "prepare", "--out", folder / "x", "--items", folder / "more.csv").code == 2


def test_no_source_or_two_is_a_usage_error(program, folder):
    answer = program("data", "describe")
    assert answer.code == 2 and "--extend" not in answer.err  # an option of prepare alone
    assert "--extend" in program("data", "prepare", "--out", folder / "x", "--extend", folder / "raw").err
    assert program("data", "describe", folder, "--events", folder / "raw" / "events.csv").code == 2


def test_missing_data_exits_3(program, folder):
    answer = program("data", "describe", "--events", folder / "none.csv")
    assert (answer.code, answer.out) == (3, "")
    assert "none.csv" in answer.err


def test_the_current_folder_is_not_called_a_dot(program, folder, monkeypatch):
    monkeypatch.chdir(folder)
    answer = program("data", "describe", "--events", "none.csv")
    assert answer.err.endswith("none.csv does not exist. This folder holds: raw.\n")
    (folder / "raw").rename(folder / ".raw")
    assert "error: This folder has no events" in program("data", "describe", ".").err


def test_describe_warns_of_scripts_that_the_default_encoder_cannot_read(program, tmp_path):
    (tmp_path / "e.csv").write_text("user,item,timestamp\nu,a,1\nu,b,2\n")
    (tmp_path / "i.csv").write_text("item,title,description\na,SKU 1,Зелёный чай\nb,SKU 2,Чай\n", "utf-8")
    files = ("--events", tmp_path / "e.csv", "--items", tmp_path / "i.csv")
    warning = "warning: 68% of the letters in the texts of items are not Latin (CYRILLIC 68%, LATIN 32%)"
    assert " ".join(program("data", "describe", *files).out.split()).count(warning) == 1
    assert warning.removeprefix("warning: ") in program("data", "describe", *files, "--json").out


def test_describe_and_prepare_warn_of_a_doubtful_order(program, tmp_path):
    rows = [f"u{u},{i},{i}" for u in range(30) for i in range(1 + u % 3, 10)]  # sorted by item id within each user
    (tmp_path / "e.csv").write_text("\n".join(["user,item,order", *rows]))
    warning = "warning: the events of almost every user ascend by item id: 30 of 30 users"
    for command in (["describe"], ["prepare", "--out", tmp_path / "clean"]):
        printed = program("data", *command, "--events", tmp_path / "e.csv")
        assert warning in printed.out and " doubts" not in printed.out
        told = json.loads(program("data", *command, "--events", tmp_path / "e.csv", "--json").out)
        assert told["doubts"][0].startswith(warning.removeprefix("warning: "))
        assert "doubted" in [finding["action"] for finding in told["cleaning"]["findings"]]
    # A data set that was prepared is still doubted.
    assert warning in program("data", "describe", tmp_path / "clean").out


@pytest.mark.parametrize("role", ["--items", "--users"])
def test_files_beside_a_source_are_refused(program, tmp_path, role):
    answer = program("data", "describe", tmp_path, role, "other.csv")
    assert answer.code == 2 and "leave out --items and --users" in " ".join(answer.err.split())


def test_join_makes_one_data_set_of_several_domains(program, folder):
    for name, events in (("books", "user,item\n1,2\n1,3\n2,3\n"), ("films", "user,item\n1,2\n3,2\n")):
        (folder / name).mkdir()
        (folder / name / "events.csv").write_text(events)
    domains = [f"books={folder / 'books'}", f"films={folder / 'films'}"]
    printed = program("data", "join", *domains, "--out", folder / "joined")
    assert printed.code == 0
    assert "books and films share 1 users (50.0% of the smaller domain; 2 and 1 events) and 0 items" in printed.out
    told = json.loads(program("data", "join", *domains, "--out", folder / "both", "--share-items", "--json").out)
    assert told["items"] == 2 and told["overlaps"][0]["items"] == 1
    described = json.loads(program("data", "describe", folder / "joined", "--json").out)
    assert described["items"] == 3 and "item.domain: category, 2 values (books, films)" in described["schema"]


def test_join_refuses_what_names_no_domain(program, folder):
    for domains, message in (
        ([folder / "raw"], "Expected NAME=SOURCE, such as toys=runs/toys"),
        ([f"a={folder / 'raw'}"] * 2, "Expected each domain once, found 'a' twice"),
        ([f"a={folder / 'raw'}"], "at least two domains"),
    ):
        answer = program("data", "join", *domains, "--out", folder / "joined")
        assert answer.code == 2 and message in answer.err
