"""Files as other programs write them: separators, encodings, compression, and one clear line for the rest."""

from __future__ import annotations

import gzip

import pytest

from zerograd.text.data import files

TABLE = [("one, or; two", "bad"), ("three", "good"), ("a|b", "bad")]


@pytest.mark.parametrize(("separator", "name"), [(";", "a semicolon"), ("\t", "a tab"), ("|", "a vertical bar")])
def test_a_separator_is_found_and_said(tmp_path, separator, name):
    path = tmp_path / "a.csv"
    path.write_text(f"text{separator}label\n" + "".join(f'"{text}"{separator}{label}\n' for text, label in TABLE))
    notes: list[str] = []
    assert [tuple(row.values()) for row in files.rows(path, notes)] == TABLE
    assert notes == [f"a.csv is separated by {name}, and was read so"]


@pytest.mark.parametrize("separator", [";", ",", "\t", "|", "^"])
def test_a_first_line_may_name_the_separator(tmp_path, separator):
    path = tmp_path / "a.csv"
    path.write_text(f"sep={separator}\r\ntext{separator}label\r\nx{separator}bad\r\n", newline="")
    assert files.rows(path) == [{"text": "x", "label": "bad"}]


@pytest.mark.parametrize("content", ["text,label\na;b,bad\nc;d,good\n", 'text,label\n"a\tb\tc",bad\n', "text\na;b\nc\n"])
def test_a_comma_is_a_comma_whatever_else_is_in_the_texts(tmp_path, content):
    path = tmp_path / "a.csv"
    path.write_text(content)
    notes: list[str] = []
    assert next(iter(files.rows(path, notes)[0])) == "text"
    assert not notes


def test_columns_without_name_go_where_they_are_empty_and_are_numbered_where_not(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label,,\nx,bad,,\ny,good\n,,,\n".replace("y,good\n", "y,good,,\n"))
    assert files.rows(path) == [{"text": "x", "label": "bad"}, {"text": "y", "label": "good"}]
    path.write_text(",text,label\n0,x,bad\n1,y,good\n")
    assert files.rows(path)[1] == {"column 1": "1", "text": "y", "label": "good"}
    path.write_text("text,label\nx,bad,,\n")
    assert files.rows(path) == [{"text": "x", "label": "bad"}]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
def test_a_byte_order_mark_names_the_encoding(tmp_path, encoding):
    path = tmp_path / "a.csv"
    path.write_text("text,label\nçà et là,bad\n", encoding=encoding)
    assert files.rows(path) == [{"text": "çà et là", "label": "bad"}]
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "çà et là"}\n', encoding=encoding)
    assert files.rows(path) == [{"text": "çà et là"}]


def test_a_western_table_is_read_and_said_with_a_line_to_look_at(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("text,label\nplain,bad\nla crème “brûlée” et 3 €,good\n".encode("cp1252"))
    notes: list[str] = []
    assert files.rows(path, notes)[1]["text"] == "la crème “brûlée” et 3 €"
    assert notes == ["a.csv is not UTF-8 and was read as Windows-1252; line 3 is 'la crème “brûlée” et 3 €,good'"]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("привет, как дела", "cp1251"), ("これは日本語の文です", "shift-jis"), ("这是中文的句子", "gbk"), ("ein Text", "utf-16-le")],
)
def test_other_encodings_are_refused_and_not_guessed(tmp_path, text, encoding):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\n" + f"{text},bad\n".encode(encoding) + b"\xff\xfe,x\n")
    with pytest.raises(ValueError, match=r"is not UTF-8 \(byte 0x..\); save the file as UTF-8"):
        files.rows(path)


def test_endings_are_read_in_any_case_and_gzipped(tmp_path):
    rows = [{"text": "x", "label": "bad"}]
    path = tmp_path / "A.CSV"
    path.write_text("text,label\nx,bad\n")
    assert files.rows(path) == rows
    for name, content in (("a.jsonl.gz", b'{"text": "x", "label": "bad"}\n'), ("a.csv.gz", b"text,label\nx,bad\n")):
        path = tmp_path / name
        path.write_bytes(gzip.compress(content))
        assert files.rows(path) == rows
        path.write_bytes(gzip.compress(content)[:-9])
        with pytest.raises(ValueError, match="is not a whole gzip file"):
            files.rows(path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": ' + "9" * 5000 + "}\n", "line 2 cannot be read: Exceeds the limit"),
        ("a.jsonl", '{"text": ' + "[" * 200_000 + "}\n", "line 1 cannot be read: maximum recursion depth"),
        ("a.json", "[" * 200_000, "cannot be read: maximum recursion depth"),
        ("a.jsonl", '{"text": "a"}\n{"text": "\\ud83d"}\n', "row 2: text has half of a character"),
    ],
)
def test_what_python_cannot_read_is_named(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=r".") as raised:
        files.rows(path)
    assert says in str(raised.value)
    assert str(path) in str(raised.value)
