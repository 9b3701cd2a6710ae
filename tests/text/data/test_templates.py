"""Templates read a column of any name, and print texts alone."""

from __future__ import annotations

import pytest

from zerograd.text.data import columns
from zerograd.text.data.tasks import Task, TaskSpec
from zerograd.text.data.templates import Expression, Template, reference

NAMES = [
    "row", "mask", "none", "not", "it's", "self", "loop", "True", "false", "range", "in", "review text", "a-b", "a.b", "price [$]",
    "x|y", "naïve", "class", "columns", "caller", "2nd", 'say "yes"', "{{", "a\nb", "\\n", "row['a']", "text", "text {x}", "#1",
]  # fmt: skip
ROWS = [{"label": ["bad", "good"][i % 2], "text": f"other {i}"} for i in range(12)]


@pytest.mark.parametrize("name", NAMES)
def test_a_column_of_any_name_is_the_text(name):
    rows = [row | {name: f"this {i}"} for i, row in enumerate(ROWS)]
    task = Task(columns.from_rows("mine", rows, text=name))
    (example, *_) = task.read(rows, "mine")
    assert task.prompt(example, mask="[MASK]") == "this 0\nLabel:"
    assert task.prompt(example, characters=2) == "th\nLabel:"
    assert task.length(example) == len("this 0")
    assert task.without_content(example.row, "N/A")[name] == "N/A"
    assert Template(f"{{{{ {reference(name)} }}}}").names == {name}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("{{", "row['a']")])
def test_a_column_of_any_name_can_be_typed_between_braces(name):
    assert Template(f"say {{{{ {name} }}}}, {{{{{name}}}}}").render({name: "this", "label": "bad"}) == "say this, this"
    assert Template(f"{{{{ row[{name!r}] }}}}").render({"row": "that"} | {name: "this"}) == "this"


@pytest.mark.parametrize("name", NAMES)
def test_a_column_of_any_name_is_the_label(name):
    rows = [{"body": f"text {i}", name: ["bad", "good"][i % 2]} for i in range(6)]
    task = Task(columns.from_rows("mine", rows, text="body", label=name))
    assert [example.label for example in task.read(rows, "mine")] == [0, 1] * 3


@pytest.mark.parametrize(
    ("source", "row", "text"),
    [
        ("{{ a - b }}", {"a": 3, "b": 1}, "2"),
        ("{{ a.b }}", {"a": {"b": "x"}}, "x"),
        ("{{ text | trim | upper }}", {"text": " a "}, "A"),
        ("{{ 'quoted' }} {{ text }}", {"text": "a"}, "quoted a"),
        ("{% for row in rows %}{{ row.name }},{% endfor %}", {"rows": [{"name": "a"}, {"name": "b"}]}, "a,b,"),
        ("{% for text in texts %}{{ text }} {% endfor %}", {"texts": ["a", "b"], "text": "c"}, "a b "),
        ("{% raw %}{{ a-b }}{% endraw %}{{ text }}", {"text": "a"}, "{{ a-b }}a"),
        ("{{ text if score > 0 else 'none' }}", {"text": "a", "score": 0}, "none"),
        ("{{ note or '' }}{{ text }}", {"note": None, "text": "a"}, "a"),
    ],
)
def test_expressions_are_what_they_were(source, row, text):
    assert Template(source).render(row) == text


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ row }}", "'row' is undefined; the columns are text, tags, place"),
        ("{{ review }}", "'review' is undefined; the columns are"),
        ("{{ the review }}", "'the review' is undefined; the columns are"),
        ("{{ row['the review'] }}", "'the review' is undefined"),
        ("{{ text | nothing }}", "'text | nothing' is undefined"),
        ("{{ self }}", "'self' is undefined"),
        ("{{ tags }}", "column tags is a list, and a text is wanted; choose a part of it, as in {{ tags | join(', ') }}"),
        ("{{ place }}", "column place is an object, and a text is wanted; choose a part of it"),
        ("{{ text.split() }}", "a list stands where a text is wanted"),
        ("{{ range }}", "'range' is undefined"),
        ("{{ text.upper }}", "stands where a text is wanted"),
    ],
)
def test_what_is_no_text_is_refused_by_name(source, says):
    row = {"text": "a b", "tags": ["x"], "place": {"town": "y"}}
    with pytest.raises(ValueError, match=r".") as raised:
        Template(source, "prompt").render(row)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("source", ["{{ text", "{% if %}", "{% include 'a' %}x{{"])
def test_a_template_with_a_mistake_is_refused(source):
    with pytest.raises(ValueError, match="is not a template"):
        Template(source)


def test_an_expression_with_a_mistake_names_the_columns():
    assert Expression("it's", "label").value({"it's": 3}) == 3
    with pytest.raises(ValueError, match=r'label "it.s" is neither a column nor an expression: .*; the columns are text'):
        Expression("it's", "label").value({"text": "a"})
    with pytest.raises(ValueError, match="label 'none' is neither a column"):
        Expression("none", "label").value({"text": "a"})


def test_a_place_for_the_answer_is_not_a_column_unless_there_is_one():
    assert Template("{{ text }} {{ mask }}").render({"text": "a"}, mask="[MASK]") == "a [MASK]"
    assert Template("{{ text }} {{ mask }}").render({"text": "a", "mask": "m"}, mask="[MASK]") == "a m"
    with pytest.raises(ValueError, match="has no placeholder"):
        TaskSpec("t", prompt="It is {{ mask }}", options=("a", "b"), label="label")


@pytest.mark.parametrize("empty", [None, float("nan"), "", "  "])
def test_only_columns_that_are_always_printed_must_have_a_text(empty):
    spec = TaskSpec("t", prompt="{{ text }}{% if more %}\n{{ more }}{% endif %}{{ last or '' }}", options=("a", "b"), label="label")
    row = {"text": "x", "more": empty, "last": empty, "label": "a"}
    (example,) = Task(spec).read([row], "d")
    assert Task(spec).prompt(example).strip() == "x"
    with pytest.raises(ValueError, match="d: row 1: text is empty; fill it, or leave the row out"):
        Task(spec).read([row | {"text": empty}], "d")
