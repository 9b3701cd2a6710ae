"""Everything that reads bytes from outside, with whole inputs and mutations of them; a wrong input is one line."""

from __future__ import annotations

import gzip
import io
import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from tests.text.tiny import characters, tiny_model
from zerograd.errors import SelfCheckFailed, UnresolvedOperation
from zerograd.journal import Writer
from zerograd.journal.header import read_header
from zerograd.runs.journals import read_journal
from zerograd.runs.ship import open_run_or_file
from zerograd.settings.fields import from_mapping
from zerograd.text.data import sources, tasks
from zerograd.text.data.tasks import Task
from zerograd.text.encoding import Encoder
from zerograd.text.models import loading
from zerograd.tune.settings import TuneSettings

ONE_LINE = (ValueError, OSError, UnresolvedOperation, SelfCheckFailed, ModuleNotFoundError)
"""The errors that the command line prints as one line."""

SECONDS = 20
"""A reader that takes longer hangs."""

WORDS = """{ } [ ] " ' , ; NaN null true 1e999 -1 !!python/object:os.system &a *a {{ }} {% %} \\u0000 \\ud800 - # | > ~"""
LONGER = ("\t", "\n", "\r\n", "---\n", "<<: *a", "{{ ''.__class__ }}", "{% for x in range(10**9) %}", "9" * 40)
BYTES = (b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80")
TOKENS = (*(word.encode() for word in (*WORDS.split(), *LONGER)), *BYTES)
"""Words and bytes that formats give a meaning to."""


@dataclass
class Reader:
    """A reader of files. wholes: inputs that it reads. read: takes the path of an input. name: of the file."""

    name: str
    wholes: list[bytes]
    read: Callable[[Path], Any]


def mutated(whole: bytes, draw: random.Random) -> bytes:
    """A few random changes of some bytes: flips, cuts, repetitions, tokens of the formats, numbers of lengths."""
    made = bytearray(whole)
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        at, size = draw.randrange(len(made) + 1), draw.choice((1, 2, 4, 8, 64))
        change = draw.randrange(7)
        if change == 0 and at < len(made):
            made[at] ^= 1 << draw.randrange(8)
        elif change == 1:
            del made[at : at + size]
        elif change == 2:
            made[at:at] = made[at : at + size]
        elif change == 3:
            made[at:at] = draw.choice(TOKENS)
        elif change == 4:
            made[at : at + 8] = draw.choice((0, 1, 255, 1 << 31, (1 << 63) - 1, (1 << 64) - 1)).to_bytes(8, "little")
        elif change == 5:
            made[at : at + size] = draw.randbytes(size)
        else:
            del made[at:]
    return bytes(made)


READ, REFUSED = "read", "refused"


def outcome(reader: Reader, content: bytes, folder: Path) -> str:
    """READ, REFUSED when an input is refused in one line and nothing is left behind, else what happened."""
    path = folder / reader.name
    path.write_bytes(content)
    before = {one.name for one in folder.iterdir()}
    said = READ
    try:
        with _limited():
            reader.read(path)
    except ONE_LINE as error:
        said = REFUSED if str(error).strip() else f"{type(error).__name__} without a text"
    except _Late:
        said = f"it took over {SECONDS} s"
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    left = {one.name for one in folder.iterdir()} - before
    return f"it left {sorted(left)}" if left else said


class _Late(BaseException):
    pass


@contextmanager
def _limited() -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


ROWS = [{"text": f"a “quoted” text, {i}", "label": ["no", "yes"][i % 2], "n": i / 2, "list": [i, None]} for i in range(6)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = b'text,label,n\n"a, b",yes,1\n"c ""d""",no,2.5\ne,yes,\n'
TASK = b"""name: mine
prompt: "{{ text | trim }}\\nIt is"
options: [" bad", " good"]
label: "score > 2"
where: "text"
cut: text
rows: {train: 3, dev: 1, test: 1}
"""
CONFIG = b"model: demo\ntask: sentiment-movies\nlr: 1e-3\nsteps: 10\nminutes: 0\nmethod: mezo\ndata: [a.csv]\nscheme: qk\nseed: 3\n"
TEMPLATE = b"{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}<{{ m['role'] }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # noqa: E501


def readers(folder: Path) -> dict[str, Reader]:
    """All readers. folder: holds what they need beside their input."""
    return {
        "jsonl": Reader("rows.jsonl", [JSONL], _data),
        "json": Reader("rows.json", [json.dumps(ROWS).encode(), json.dumps(ROWS, indent=1).encode()], _data),
        "csv": Reader("rows.csv", [CSV, CSV.replace(b",", b";"), b"sep=,\n" + CSV], _data),
        "tsv": Reader("rows.tsv", [CSV.replace(b",", b"\t")], _data),
        "gzip": Reader("rows.jsonl.gz", [gzip.compress(JSONL)], _data),
        "parquet": Reader("rows.parquet", [_parquet()], _data),
        "task": Reader("task.yaml", [TASK], _task),
        "settings": Reader("config.yaml", [CONFIG], _settings),
        "journal": Reader("journal.zgj", [_shipped(folder), (folder / "run" / "journal.zgj").read_bytes()], read_journal),
        "shipped file": Reader("tuned.zg", [_shipped(folder)], lambda path: open_run_or_file(str(path))),
        "shipped header": Reader("header.json", [_header(folder)], lambda path: _with_header(path, folder)),
        "gguf": Reader("model.gguf", [_gguf(folder)], lambda path: loading.configuration(str(path))),
        "safetensors": Reader("model.safetensors", [_model(folder)], lambda path: _load(path, folder)),
        "chat template": Reader("template.jinja", [TEMPLATE], _chat),
    }


def _data(path: Path) -> None:
    for rows in sources.read(str(path)).values():
        Task(SPEC).read(rows, str(path))


def _task(path: Path) -> None:
    spec = tasks.spec(str(path))
    Task(spec).read([{"text": "a", "score": 3}], "rows")


def _settings(path: Path) -> None:
    from zerograd.machine.yaml_files import read_yaml

    from_mapping(TuneSettings, read_yaml(path, "config", "--show-config writes one"), f"config {path}")


def _chat(path: Path) -> None:
    tokenizer = characters()
    tokenizer.chat_template = path.read_text(errors="replace")
    task = Task(CHAT)
    (example,) = task.read([{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}], "rows")
    encoder = Encoder(tokenizer, task)
    encoder.prompt_ids(example)
    encoder.answer_ids(example)


SPEC = tasks.TaskSpec("rows", prompt="{{ text }}=", options=(" no", " yes"), label="label", labels=("no", "yes"))
CHAT = tasks.TaskSpec("chat", messages="messages")


def _parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    into = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b", "c"], "label": ["no", "yes", "no"], "n": [1.0, np.nan, 2]}), into)
    return into.getvalue()


def _shipped(folder: Path) -> bytes:
    """A shipped file of a real run."""
    from tests.tune.straight import model_folder
    from zerograd.runs.ship import ship
    from zerograd.tune import tune

    shipped = folder / "whole.zg"
    if not shipped.exists():
        rows = [{"text": f"row {i}", "label": ["no", "yes"][i % 2]} for i in range(60)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = TuneSettings(
            model=str(model_folder(folder)), data=(str(folder / "rows.jsonl"),), text="text", label="label", minutes=0, steps=3,
            batch_size=2, evals=0, threads=1, out=str(folder / "run"),
        )  # fmt: skip
        tune(settings)
        ship(str(folder / "run"), shipped)
    return shipped.read_bytes()


def _header(folder: Path) -> bytes:
    return json.dumps(dict(read_header(folder / "whole.zg")), indent=1).encode()


def _with_header(path: Path, folder: Path) -> None:
    """A shipped file with the input as its header, under checksums that are right."""
    header = json.loads(path.read_bytes())
    if not isinstance(header, dict):
        raise ValueError("the header is no object")  # no writer makes one
    made = folder / "made.zg"
    made.unlink(missing_ok=True)
    writer = Writer.create(made, header)
    for record in read_journal(folder / "whole.zg").records:
        writer.add(record)
    writer.close()
    open_run_or_file(str(made))


def _gguf(folder: Path) -> bytes:
    """The header of a tiny GGUF file with its metadata and one tensor."""
    import gguf

    path = folder / "whole.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    for add, value in (
        ("context_length", 64), ("embedding_length", 16), ("block_count", 1), ("feed_forward_length", 24), ("head_count", 2),
        ("head_count_kv", 1), ("layer_norm_rms_eps", 1e-5), ("rope_dimension_count", 8), ("vocab_size", 12),
    ):  # fmt: skip
        getattr(writer, f"add_{add}")(value)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}" for i in range(12)])
    writer.add_token_scores([0.0] * 12)
    writer.add_token_types([1] * 12)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_tensor("token_embd.weight", np.zeros((12, 16), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def _model(folder: Path) -> bytes:
    whole = folder / "model"
    if not whole.exists():
        tiny_model().save_pretrained(whole)
        characters().save_pretrained(whole)
    return (whole / "model.safetensors").read_bytes()


def _load(path: Path, folder: Path) -> None:
    """The model of a folder whose weights are the input."""
    (folder / "model" / "model.safetensors").write_bytes(path.read_bytes())
    loading.load(str(folder / "model"), torch.float32)
