"""Records of every kind become the same conversations; broken ones are refused by name and number."""

import csv
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_modules.data.records import read_conversations, response_turns, to_conversation
from llm_modules.errors import MissingFileError, UserError

QUESTION = {"role": "user", "content": "What is the sum of 5 and 5?"}
ANSWER = {"role": "assistant", "content": "10"}
SYSTEM = {"role": "system", "content": "Think."}

# No control characters: CSV readers disagree about carriage returns and zero bytes.
CHARACTERS = st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")) | st.just("\n")
TEXT = st.text(CHARACTERS, min_size=1, max_size=20).filter(str.strip)


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [QUESTION, ANSWER]},
        {"conversations": [{"from": "human", "value": QUESTION["content"]}, {"from": "gpt", "value": "10"}]},
        {"conversations": [{"from": "user", "value": QUESTION["content"]}, {"from": "assistant", "value": "10"}]},
        {"prompt": QUESTION["content"], "completion": "10"},
        {"prompt": [QUESTION], "completion": [ANSWER]},
        {"messages": json.dumps([QUESTION, ANSWER])},
        {"messages": None, "prompt": QUESTION["content"], "completion": "10"},
    ],
)
def test_every_form_of_record_gives_the_same_conversation(record):
    assert to_conversation(record) == [QUESTION, ANSWER]


def test_system_field_becomes_the_system_turn():
    record = {
        "system": "Think.",
        "conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}],
    }
    assert to_conversation(record)[0] == SYSTEM


def test_system_turn_wins_over_system_field():
    assert to_conversation({"system": "other", "messages": [SYSTEM, QUESTION, ANSWER]}) == [SYSTEM, QUESTION, ANSWER]


@settings(max_examples=40)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4))
def test_a_conversation_trains_as_one_example_per_assistant_turn(pairs):
    turns = [
        {"role": role, "content": text}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    conversation = to_conversation({"messages": turns})
    examples = response_turns(conversation)
    assert [example[-1]["content"] for example in examples] == [answer for _, answer in pairs]
    assert all(example == conversation[: len(example)] for example in examples)


@settings(max_examples=25)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
def test_jsonl_csv_and_parquet_hold_the_same(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("forms")
    rows = [{"prompt": question, "completion": answer} for question, answer in pairs]
    write_jsonl(folder / "a.jsonl", rows)
    (folder / "a.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet")
    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(rows)
    expected = [to_conversation(row) for row in rows]
    for name in ("a.jsonl", "a.json", "a.parquet", "a.csv"):
        assert read_conversations(folder / name) == expected


def test_folder_written_by_datasets_is_read(tmp_path):
    data = datasets.Dataset.from_list([{"prompt": "q", "completion": "a"}])
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "two")
    for folder in ("one", "two"):
        assert read_conversations(tmp_path / folder) == [to_conversation({"prompt": "q", "completion": "a"})]


def test_split_that_is_not_there_names_those_that_are(tmp_path):
    data = datasets.Dataset.from_list([{"prompt": "q", "completion": "a"}])
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "two")
    with pytest.raises(UserError, match="no split 'dev'; it has train, test"):
        read_conversations(tmp_path / "two", split="dev")


def test_hub_data_set_is_read(monkeypatch):
    loaded = {"train": [{"prompt": "q", "completion": "a"}]}
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, revision: loaded if (name, revision) == ("owner/name", None) else None
    )
    assert len(read_conversations("owner/name")) == 1
    monkeypatch.setattr(datasets, "load_dataset", lambda name, revision: loaded if revision == "abc" else None)
    assert len(read_conversations("owner/name@abc")) == 1


@pytest.mark.parametrize("error", [ConnectionError("no network"), datasets.exceptions.DatasetNotFoundError("no such")])
def test_unreachable_hub_data_set_says_what_to_do_offline(monkeypatch, error):
    def refuse(name, revision):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(MissingFileError, match=r"owner/name.*on another machine run `hf download.*HF_HUB_OFFLINE=1"):
        read_conversations("owner/name")


@pytest.mark.parametrize("name", ["missing.jsonl", "./missing", "/not/there/at/all"])
def test_missing_file_is_named(name):
    with pytest.raises(FileNotFoundError, match=f"{name} is not there"):
        read_conversations(name)


@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl", ""), ("a.jsonl", "\n\n"), ("a.json", "[]"), ("a.csv", "prompt\n")]
)
def test_empty_file_is_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name} is empty"):
        read_conversations(tmp_path / name)


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not load as a data set"):
        read_conversations(tmp_path)


def test_unknown_ending_names_the_known_ones(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(UserError, match=r"ending '.txt'; known are .jsonl, .json, .csv, .parquet"):
        read_conversations(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"prompt": "q", "completion": "a"}\n{"prompt": \n', "line 2 is not JSON"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "{}", "write a list of records"),
        ("a.jsonl", "[1]\n", "record 1 is a list, not a mapping"),
        ("a.parquet", "no parquet at all", "is not a Parquet file"),
    ],
)
def test_broken_file_says_where(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_conversations(tmp_path / name)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "q", "answer": "a"}, "record 2 has the fields: question, answer; rename"),
        ({"prompt": "q"}, "record 2 has the fields: prompt;"),
        ({}, "record 2 has the fields: none"),
        ({"prompt": "q", "completion": " "}, "record 2 has no response: an assistant turn is empty"),
        ({"prompt": "q", "completion": None}, "record 2 has no response"),
        ({"prompt": "q", "completion": 7}, "record 2: `completion` is a int, not text"),
        ({"prompt": "", "completion": "a"}, "record 2 has no prompt"),
        ({"messages": [QUESTION]}, "record 2 has no response: there is no assistant turn"),
        ({"messages": [SYSTEM, ANSWER]}, "record 2 has no prompt"),
        ({"messages": []}, "record 2 has no response"),
        ({"messages": "not json"}, "`messages` is neither a list nor JSON text"),
        ({"messages": {"role": "user"}}, "`messages` is a dict; it must be a list of turns"),
        ({"messages": [{"role": "user"}]}, "turn 1 of `messages` must have `role` and `content`"),
        (
            {"messages": [QUESTION, {"role": "tool", "content": "x"}]},
            "turn 2 of `messages` has the unknown role 'tool'",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "is a list, not text"),
    ],
)
def test_bad_record_is_named_by_its_number(tmp_path, record, message):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a"}, record])
    with pytest.raises(UserError, match=message):
        read_conversations(path)
