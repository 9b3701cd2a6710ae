"""Tasks as data: what a YAML file may say, and the built-in ones on rows of their data's shape."""

from __future__ import annotations

import json

import pytest

from zerograd.bench import prompts
from zerograd.text.data import splits, tasks
from zerograd.text.data.sources import Source
from zerograd.text.data.tasks import Task, TaskSpec

# One row of each data set's shape (column names and types as published), with what the task must make of it.
SHAPES = {
    "sst2": (
        {"idx": 0, "sentence": "a gem ", "label": 1},
        "a gem It was",
        (" terrible", " great"),
        (1,),
    ),
    "rte": (
        {"idx": 0, "premise": "It rains.", "hypothesis": "It is wet.", "label": 0},
        'It rains.\nDoes it follow that "It is wet." is true? Yes or No?',
        (" Yes", " No"),
        (0,),
    ),
    "cb": (
        {"idx": 0, "premise": "He left.", "hypothesis": "he left", "label": 2},
        'Suppose that He left. Can we conclude that "he left"? Yes, No or Maybe?',
        (" Yes", " No", " Maybe"),
        (2,),
    ),
    "boolq": (
        {"idx": 0, "passage": "Cats purr.", "question": "do cats purr", "label": 1},
        "Cats purr. Do cats purr?",
        ("\nYes", "\nNo"),
        (0,),
    ),
    "wsc": (
        {"idx": 0, "text": "Mark told Pete.", "span1_index": 0, "span1_text": "Mark", "span2_text": "he", "label": 0},
        'Mark told Pete.\nIn this passage, does the pronoun "he" refer to "Mark"? Yes or No?',
        (" No", " Yes"),
        (0,),
    ),
    "wic": (
        {"idx": 0, "word": "bank", "sentence1": "A bank.", "sentence2": "The bank.", "start1": 2, "end1": 6, "label": 1},
        'Does "bank" have the same meaning in these two sentences? Yes or No?\nA bank.\nThe bank.\nAnswer:',
        (" No", " Yes"),
        (1,),
    ),
    "multirc": (
        {"idx": {"paragraph": 3, "question": 1, "answer": 2}, "paragraph": "P.", "question": "Q?", "answer": "A", "label": 1},
        'P.\nQuestion: Q?\nI found this answer: "A". Is it correct? Yes or No?',
        (" No", " Yes"),
        (1,),
    ),
    "copa": (
        {"idx": 0, "premise": "It rained.", "choice1": "I got wet.", "choice2": "I sang.", "question": "effect", "label": 0},
        "It rained so",
        (" i got wet.", " i sang."),
        (0,),
    ),
    "record": (
        {
            "idx": {"passage": 0, "query": 0}, "passage": "Ann met Bo.\n@highlight\nThey spoke", "query": "@placeholder smiled",
            "entities": ["Ann", "Bo", "Ann"], "answers": ["Bo"],
        },
        "Ann met Bo.\n- They spoke\n-",
        (" Ann smiled", " Bo smiled"),
        (1,),
    ),
    "squad": (
        {"id": "x", "title": "T", "context": "C", "question": " Who?", "answers": {"text": ["Ann", "Ann B."]}},
        "Title: T\nContext: C\nQuestion: Who?\nAnswer:",
        (),
        (),
    ),
    "drop": (
        {"section_id": "s", "query_id": "q", "passage": "P", "question": "How many?", "answers_spans": {"spans": ["3"]}},
        "Passage: P\nQuestion: How many?\nAnswer:",
        (),
        (),
    ),
}  # fmt: skip


def test_every_built_in_task_that_has_no_data_here_is_tested_on_its_shape():
    assert {name for name in tasks.TASKS if not name.startswith("sentiment-")} == set(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_a_built_in_task_reads_rows_of_its_data(name, tmp_path):
    row, prompt, options, labels = SHAPES[name]
    spec = tasks.spec(name)
    column = next(column for column in ("sentence", "premise", "passage", "text", "word", "paragraph", "context") if column in row)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({**row, column: f"{i} {row[column]}"}) + "\n" for i in range(3)))
    (tmp_path / "validation.jsonl").write_text(json.dumps(row) + "\n")
    task = splits.with_rows(spec, [Source(str(tmp_path))])
    (example,) = task.test
    assert task.prompt(example) == prompt
    assert (example.options or task.options) == options
    assert example.labels == labels
    if spec.kind == "answer":
        assert example.answers == tuple(row["answers"]["text"] if name == "squad" else ["3"])
        assert spec.metric == "token-f1"
    assert spec.data
    assert len(task.train) + len(task.dev) >= 2


def test_the_small_sets_are_said_to_be_small():
    assert "66, 63.5 %" in tasks.spec("wsc").note
    assert "carries no information" in tasks.spec("wsc").note
    for name in ("cb", "copa", "rte"):
        assert "standard error" in tasks.spec(name).note


def test_a_name_that_is_no_task_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match=r"'sentiment-films' is not one of boolq, cb, .*sentiment-movies.*nor a YAML file"):
        tasks.spec("sentiment-films")
    with pytest.raises(FileNotFoundError, match=r"task 'mine.yaml' is not there; give a YAML file"):
        tasks.spec("mine.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prompt: [", "task mine is not YAML"),
        ("- a", "task mine is a list"),
        ("prompt: '{{ a }}'\noption: [x]", "has a field 'option'; the fields are name, prompt"),
        ("prompt: 'Is it good?'\noptions: [a, b]\nlabel: y", "has no placeholder"),
        ("prompt: 'Is {text} good?'\noptions: [a, b]\nlabel: y", "two braces on each side"),
        ("prompt: '{{ a'\noptions: [a, b]\nlabel: y", "is not a template"),
        ("prompt: '{{ a }}'", "give either options or an answer"),
        ("options: [a, b]", "give either a prompt or messages"),
        ("prompt: '{{ a }}'\noptions: [a]\nlabel: y", "there is one option, 'a'; a choice needs two"),
        ("prompt: '{{ a }}'\noptions: [a, b]\nlabel: y\nlabels: [1, 2, 3]", "3 labels for 2 options; give one each"),
        ("prompt: '{{ a }}'\noptions: [a, b]", "has options and no label"),
        ("prompt: 3\noptions: [a, b]\nlabel: y", "prompt is 3; it must be a text"),
        ("prompt: '{{ a }}'\noptions: yes\nlabel: y", "options is 'yes'; it must be a list of texts"),
    ],
)
def test_a_task_that_cannot_be_is_refused_in_one_line(text, says):
    with pytest.raises(ValueError, match=r".") as raised:
        tasks.parse(text, "mine")
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_yaml_says_again_what_was_read():
    for name in tasks.TASKS:
        assert tasks.parse(tasks.spec(name).to_yaml(), name) == tasks.spec(name)


def test_templates_reach_no_python():
    task = Task(TaskSpec("m", prompt="{{ a.__class__.__mro__ }}", options=("x", "y"), label="a"))
    with pytest.raises(ValueError, match="prompt"):
        task.read([{"a": "x"}], "data mine")


def test_a_column_that_the_prompt_lacks_is_named():
    task = Task(TaskSpec("m", prompt="{{ a }} {{ b }}", options=("x", "y"), label="l"))
    with pytest.raises(ValueError, match=r"data mine: row 2: prompt '.*': 'b' is undefined; the columns are a, l"):
        task.read([{"a": "1", "b": "2", "l": 0}, {"a": "1", "l": 0}], "data mine")


def test_a_column_by_its_name_in_quotes_is_a_column():
    spec = TaskSpec("d", prompt="{{ row['Review Body'] }} {{ row.title }}=", options=(" n", " p"), label="label")
    made = Task(spec)
    row = {"Review Body": "a long text", "title": "t", "label": 0}
    assert made.without_content(row, "N/A") == row | {"Review Body": "N/A", "title": "N/A"}
    (example,) = made.read([row], "d")
    assert made.prompt(example, characters=1) == "a t="
    for wrong in (None, ""):
        with pytest.raises(ValueError, match="Review Body is empty; fill it"):
            made.read([row | {"Review Body": wrong}], "d")
    assert prompts.with_prompt(spec, "plain", {}).prompt == "{{ row['Review Body'] | trim }}\n{{ title | trim }}"


def test_what_may_be_cut_is_what_has_content():
    row = {"premise": "It rained.", "choice1": "It was wet.", "choice2": "It was dry.", "question": "effect", "label": 0}
    found = Task(tasks.spec("copa")).without_content(row, "N/A")
    assert found == row | {"premise": "N/A"}


def test_a_number_is_the_index_of_a_choice_and_a_text_its_name():
    spec = TaskSpec("d", prompt="{{ q }}", options={"each": "choices", "option": " {{ each }}"}, label="answer")
    row = {"q": "2 - 0?", "choices": ["1", "2", "3", "0"]}
    for answer, index in ((1, 1), (3, 3), ("2", 1), ("0", 3)):
        (example,) = Task(spec).read([row | {"answer": answer}], "d")
        assert example.label == index


def test_an_option_twice_is_refused():
    with pytest.raises(ValueError, match="option ' a' is there twice; give each once"):
        TaskSpec("d", prompt="{{ text }}", options=(" a", " b", " a"), label="label")


def test_labels_are_indices_values_or_options():
    numbers = Task(TaskSpec("m", prompt="{{ a }}", options=(" x", " y"), label="l"))
    assert [e.label for e in numbers.read([{"a": "1", "l": value} for value in (0, 1, "1", True, "y")], "d")] == [0, 1, 1, 1, 1]
    values = Task(TaskSpec("m", prompt="{{ a }}", options=(" x", " y"), label="l", labels=(5, 3)))
    assert [e.label for e in values.read([{"a": "1", "l": value} for value in (5, "3")], "d")] == [0, 1]
    with pytest.raises(ValueError, match="l is 0; it must be one of 5, 3"):
        values.read([{"a": "1", "l": 0}], "d")


def test_the_longest_column_is_the_one_that_loses_its_end():
    task = Task(TaskSpec("m", prompt="{{ a }}|{{ b }}", options=("x", "y"), label="l"))
    (example,) = task.read([{"a": "short", "b": "a much longer one", "l": 0}], "d")
    assert task.prompt(example, characters=3) == "short|a m"
    fixed = Task(TaskSpec("m", prompt="{{ a }}|{{ b }}", options=("x", "y"), label="l", cut="a"))
    assert fixed.prompt(example, characters=3) == "sho|a much longer one"
