"""A run that is cut off anywhere and goes on ends with the bits of one that was not."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from tests import ROOT
from tests.tune.straight import KINDS, learnt, records, require_as_far, rows, settings, weights
from zerograd import journal
from zerograd.cli import main
from zerograd.evaluate.hidden_cache import HiddenCache
from zerograd.journal import Note, Restore, Skip, Step, Writer
from zerograd.journal.snapshot import Snapshot
from zerograd.text import evaluation
from zerograd.text.data import splits
from zerograd.text.data.tasks import Task, TaskSpec
from zerograd.text.objectives import LossObjective
from zerograd.text.scoring import Scorer
from zerograd.tune import loop, lr_finder, results, tune
from zerograd.tune import setup as setups
from zerograd.tune.folder import BASELINE, JOURNAL
from zerograd.tune.resume import resumed_settings
from zerograd.tune.run import run
from zerograd.tune.setup import Setup, set_up
from zerograd.update import Target

pytestmark = [
    pytest.mark.full,
    pytest.mark.usefixtures("small_task"),
    pytest.mark.filterwarnings("ignore:bfloat16 precision rounds"),
]


class Killed(BaseException):
    """What no code is to handle."""


PLACES: dict[str, tuple[Any, str, bool]] = {
    "before a record": (Writer, "add", False),
    "after a record": (Writer, "add", True),
    "in an update": (Target, "_subtract", False),
    "in a forward pass": (Scorer, "losses", False),
    "in an evaluation": (evaluation, "answers", False),
    "before a snapshot": (Snapshot, "take", False),
    "after a snapshot": (Snapshot, "take", True),
    "before going back": (Snapshot, "restore", False),
    "after going back": (Snapshot, "restore", True),
    "in the hidden states": (HiddenCache, "_keep", False),
    "after hidden states": (HiddenCache, "_keep", True),
    "before saving": (results, "save_model", False),
    "after saving": (results, "save_model", True),
    "while all is written": (results, "write_results", False),
}


def cut_off(made: Setup, patch: pytest.MonkeyPatch, place: str, number: int) -> bool:
    """Run until the number-th time that it comes to a place. Returns whether it came to it."""
    where, name, after = PLACES[place]
    real, calls = getattr(where, name), []

    def killing(*given: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) < number:
            return real(*given, **more)
        if after:
            real(*given, **more)
        raise Killed

    patch.setattr(where, name, killing)
    try:
        run(made)
    except Killed:
        return True
    finally:
        patch.setattr(where, name, real)
    return False


NUMBERS = {
    **dict.fromkeys(("in the hidden states", "after hidden states", "before saving", "after saving", "while all is written"), (1,)),
    **dict.fromkeys(("before a snapshot", "after a snapshot", "before going back", "after going back"), (2,)),
    **dict.fromkeys(("before a record", "in an update"), (1, 6)),
}
"""The times at which a run is cut off at a place: some it comes to once or twice. The sixth time at the others."""

SOME = [("mezo, back-offs", place) for place in PLACES]
SOME += [("per-example", place) for place in PLACES if place.startswith("after") or place == "in an update"]
SOME += [(kind, place) for kind in ("upper", "bfloat16, all", "lora") for place in ("after a record", "after saving")]
"""Everywhere in the run that goes back; in the others where they differ: their updates, caches and what they save."""


@pytest.mark.parametrize(("kind", "place"), SOME)
def test_a_run_that_was_cut_off_ends_with_the_bits_of_one_that_was_not(folder, straight, tmp_path, monkeypatch, kind, place):
    reached, fails = 0, 0
    for number in NUMBERS.get(place, (6,)):
        out = tmp_path / str(number)
        given = settings(folder, out, **KINDS[kind])
        if not cut_off(set_up(given), monkeypatch, place, number):
            break
        reached += 1
        if not (out / JOURNAL).exists():
            continue  # nothing was learnt
        said = rows(out)
        taken = sum(isinstance(record, (Step, Skip)) for record in records(out))
        fails += any(row["step"] > taken for row in said)
        tune(given, resume=True)
        assert learnt(out) == learnt(straight[kind])
        assert kind == "lora" or weights(out) == weights(straight[kind])
        assert [row["step"] for row in rows(out)] == [row["step"] for row in rows(straight[kind])]
        assert rows(out)[-1]["dev_loss"] == rows(straight[kind])[-1]["dev_loss"]
        left = {path.name for path in out.iterdir()}
        assert left == {path.name for path in straight[kind].iterdir()}
        if kind == "lora":
            name = "model/adapter_model.safetensors"
            assert (out / name).read_bytes() == (straight[kind] / name).read_bytes()
    assert reached or kind != "mezo, back-offs" or "hidden" in place
    assert not fails, "a step was reported that is not in the journal"


def test_the_runs_of_these_tests_do_what_they_are_meant_to(straight):
    """Back-offs happen, hidden states are kept, and records of all kinds are there."""
    found = records(straight["mezo, back-offs"])
    assert sum(isinstance(record, Restore) for record in found) >= 2
    assert any(isinstance(record, Note) for record in found)
    result = json.loads((straight["per-example"] / "result.json").read_text())
    assert result["loss_after"] != result["loss_before"], "the best weights are not the untouched ones"
    assert json.loads((straight["mezo, back-offs"] / "result.json").read_text())["back_offs"] >= 1
    assert json.loads((straight["per-example"] / "result.json").read_text())["cache_bytes"] > 0


def test_a_run_may_be_cut_off_again_and_again(folder, straight, tmp_path, monkeypatch):
    out = tmp_path / "run"
    given = settings(folder, out)
    cuts = [("after a record", 3), ("in an evaluation", 4), ("in an update", 3), ("before saving", 1)]
    for i, (place, number) in enumerate(cuts):
        assert cut_off(set_up(given, resume=i > 0), monkeypatch, place, number)
    tune(given, resume=True)
    assert weights(out) == weights(straight["per-example"])


@pytest.mark.parametrize("lost", ["best.safetensors", "hidden.cache", "untouched.json", "metrics.jsonl"])
@pytest.mark.parametrize("how", ["gone", "cut", "changed"])
def test_what_only_shortens_the_way_may_be_lost(folder, straight, tmp_path, monkeypatch, lost, how):
    """Snapshots, kept states and logs that are gone or damaged are made again. Hidden states: of an epoch that is not over."""
    out = tmp_path / "run"
    given = settings(folder, out)
    assert cut_off(set_up(given), monkeypatch, "after a record", 8)
    path = out / lost
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(
            data[: len(data) // 2] + (b"" if how == "cut" else bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :])
        )
    tune(given, resume=True)
    if lost != "hidden.cache":
        assert weights(out) == weights(straight["per-example"])


def test_the_newest_snapshot_shortens_the_way(folder, straight, tmp_path, monkeypatch):
    out = tmp_path / "run"
    given = settings(folder, out)
    monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", 0.0)
    assert cut_off(set_up(given), monkeypatch, "after a record", 11)
    assert sum(isinstance(record, Step) for record in records(out)) > 5
    done = []
    real = journal.replay
    monkeypatch.setattr(journal, "replay", lambda *given: (done.append(len(given[1])), real(*given)))
    tune(given, resume=True)
    assert sum(done) <= 1
    assert weights(out) == weights(straight["per-example"])
    assert not (out / "latest.safetensors").exists()


def test_a_run_that_was_interrupted_or_is_given_more_goes_on(folder, straight, tmp_path, monkeypatch):
    """After Ctrl-C the run has a result, of its best weights; going on takes the last ones up again."""
    out = tmp_path / "run"
    made = set_up(settings(folder, out))
    step, calls = made.step, []

    def interrupted(examples: Any) -> float:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(examples)

    made.step = interrupted  # type: ignore[method-assign]
    assert "interrupted after step 5" in run(made)["stopped"]
    result = tune(settings(folder, out), resume=True)
    assert (result["steps"], result["stopped"]) == (12, None)
    assert learnt(out) == learnt(straight["per-example"])
    assert weights(out) == weights(straight["per-example"])
    more = tune(settings(folder, out, steps=15), resume=True)
    assert more["steps"] == 15


def test_ctrl_c_after_a_back_off_goes_on_from_the_weights_that_it_went_back_to(folder, straight, tmp_path):
    kind = "mezo, back-offs"
    found = records(straight[kind])
    back = next(i for i, record in enumerate(found) if isinstance(record, Restore) and "ended" not in record.note)
    taken = sum(isinstance(record, (Step, Skip)) for record in found[:back])
    assert found[back].step < taken < 12
    given = settings(folder, tmp_path / "run", **KINDS[kind])
    for resume in (False, True):  # the second time before any other step
        made = set_up(given, resume=resume)
        losses = made.scorer.losses

        def interrupted(batch: Any, made: Setup = made, losses: Any = losses) -> Any:
            if made.optimizer.steps == taken:
                raise KeyboardInterrupt
            return losses(batch)

        made.warm_up()
        made.warm_up = lambda listen: None  # type: ignore[method-assign]
        made.objective = LossObjective(interrupted)
        assert f"interrupted after step {taken}" in run(made)["stopped"]
    tune(given, resume=True)
    assert learnt(tmp_path / "run") == learnt(straight[kind])
    assert weights(tmp_path / "run") == weights(straight[kind])


def test_a_run_that_ends_with_a_back_off_goes_on_from_the_weights_that_it_went_back_to(folder, tmp_path):
    out = tmp_path / "run"
    more = KINDS["mezo, back-offs"] | {"evals": 1}
    assert tune(settings(folder, out, steps=4, **more))["back_offs"] == 1
    backed_off, ended = (record for record in records(out) if isinstance(record, Restore))
    assert backed_off.step == ended.step == 0
    made = set_up(settings(folder, out, steps=6, **more), resume=True)
    untouched = [space.exact().clone() for space in made.optimizer.spaces]
    step, seen = made.step, []

    def stepping(examples: Any) -> float:
        seen.append([space.exact().clone() for space in made.optimizer.spaces])
        return step(examples)

    made.step = stepping  # type: ignore[method-assign]
    assert run(made)["steps"] == 6
    assert all(torch.equal(a, b) for a, b in zip(seen[0], untouched, strict=True))


def command(out, *more: str) -> int:
    return main(["tune", "--resume", str(out), *more])


def test_what_cannot_go_on_is_said_in_one_line(folder, tmp_path, monkeypatch, capsys, straight):
    out = tmp_path / "run"
    given = settings(folder, out)
    assert command(out) == 2
    assert f"journal {out}/journal.zgj is not there; give a journal, or the folder of a run" in capsys.readouterr().err
    assert cut_off(set_up(given), monkeypatch, "after a record", 5)
    assert main(["tune", "--model", str(folder), "--out", str(out), "--steps", "2"]) == 2
    assert f"whose run was interrupted; continue it with --resume {out}, or name another folder" in capsys.readouterr().err
    assert command(out, "--lr", "0.1") == 2
    assert "lr is the run's own; leave it out (only minutes, steps," in capsys.readouterr().err
    whole = (out / JOURNAL).read_bytes()
    (out / JOURNAL).write_bytes(whole[:-50] + b"?" + whole[-49:])
    assert command(out) == 2
    assert " written, at byte " in capsys.readouterr().err
    (out / JOURNAL).write_bytes(whole[:-3])
    holding, _, _ = Writer.reopen(out / JOURNAL, lambda record: None)
    assert command(out) == 2
    assert "is being written by another process" in capsys.readouterr().err
    holding.close()
    finished = straight["per-example"]
    assert command(finished) == 2
    assert "has ended; to continue it, give more --steps, --minutes or --evaluations than it had" in capsys.readouterr().err


def test_another_base_and_other_rows_are_refused(folder, tmp_path, monkeypatch):
    model, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(folder, model)
    given = settings(model, out)
    assert cut_off(set_up(given), monkeypatch, "after a record", 5)
    full = splits.load("sentiment-movies")
    spec = TaskSpec("letters", prompt="{{ text | trim }}=", options=("n", "p"), label="label", cut="text")
    with monkeypatch.context() as patch:
        patch.setattr(setups, "task_of", lambda settings: Task(spec, full.train[1:41], full.dev[:20], full.test[:20]))
        with pytest.raises(ValueError, match="the rows of task letters have changed since run"):
            tune(given, resume=True)
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaForCausalLM.from_pretrained(model).config).to(torch.bfloat16).save_pretrained(model)
    with pytest.raises(
        journal.WrongBase,
        match=r"with identity \w{32}, and this one has identity \w{32}; give the base model that the journal names",
    ):
        tune(given, resume=True)
    assert len(records(out))


@settings_of_hypothesis(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from(sorted(PLACES)), st.integers(1, 7)), max_size=5),
    st.sampled_from(["per-example", "mezo, back-offs"]),
)
def test_any_cuts_lead_to_the_bits_of_the_straight_run(folder, straight, tmp_path_factory, cuts, kind):
    out = tmp_path_factory.mktemp("cuts") / "run"
    given = settings(folder, out, **KINDS[kind])
    with pytest.MonkeyPatch.context() as patch:
        for place, number in cuts:
            going = (out / JOURNAL).exists()
            if not cut_off(set_up(given, resume=going), patch, place, number):
                break
        else:
            tune(given, resume=(out / JOURNAL).exists())
    assert weights(out) == weights(straight[kind])
    assert learnt(out) == learnt(straight[kind])


FULL = """
import sys
sys.path.insert(0, sys.argv[1])
from zerograd.cli import main
from zerograd.text.data import splits
from zerograd.text.data.tasks import Task, TaskSpec
from zerograd.tune import setup
full = splits.load("sentiment-movies")
spec = TaskSpec("letters", prompt="{{ text | trim }}=", options=("n", "p"), label="label", cut="text")
setup.task_of = lambda settings: Task(spec, full.train[:40], full.dev[:20], full.test[:20])
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
sys.exit(main(["tune", *sys.argv[3:]]))
"""


def test_a_disk_that_fills_ends_a_run_in_one_line_and_it_goes_on_when_there_is_room(folder, straight, tmp_path):
    """By the system's limit of a file's size: the journal may not grow beyond some steps."""
    out = tmp_path / "run"
    flags = ["--model", str(folder), "--out", str(out), "--minutes", "0", "--steps", "12", "--batch-size", "8", "--threads", "1"]
    flags += ["--evals", "3", "--lr", "0.02", "--scheme", "upper"]
    size = (straight["upper"] / JOURNAL).stat().st_size
    done = subprocess.run([sys.executable, "-c", FULL, str(ROOT), str(size - 700), *flags], capture_output=True, text=True)
    assert done.returncode == 2
    error = done.stderr.strip().splitlines()[-1]
    assert "stopped after step " in error
    assert "File too large" in error
    assert f"the journal has all steps: fix the problem and continue with --resume {out}" in error
    taken = sum(isinstance(record, Step) for record in records(out))
    assert 0 < taken < 12
    tune(settings(folder, out, **KINDS["upper"]), resume=True)
    require_as_far(out, straight["upper"], taken)


def test_a_disk_that_is_full_before_the_first_step_is_named_with_the_file(folder, tmp_path):
    out = tmp_path / "run"
    flags = ["--model", str(folder), "--out", str(out), "--minutes", "0", "--steps", "2", "--batch-size", "8", "--threads", "1"]
    done = subprocess.run([sys.executable, "-c", FULL, str(ROOT), "100", *flags], capture_output=True, text=True)
    assert done.returncode == 2
    said = done.stderr.strip().splitlines()[-1]
    assert said == f"zerograd tune: {out / BASELINE} could not be written: [Errno 27] File too large"
    assert not list(out.glob("**/*.partial"))


@pytest.fixture
def disk(tmp_path):
    """A file system of 4 MB of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize("at", [0, 2, 6, 11])
def test_a_full_disk_loses_nothing_that_was_recorded(folder, straight, disk, monkeypatch, at):
    """The last byte is taken when the journal is to have its step `at`; what comes after it is refused by the system itself."""
    out, add, filler = disk / "run", Writer.add, disk / "filler"

    def full(writer: Writer, record: Any) -> None:
        if isinstance(record, Step) and record.number == at and not filler.exists():
            with filler.open("wb", buffering=0) as file:
                for size in (1 << 16, 1):
                    with contextlib.suppress(OSError):
                        while file.write(b"x" * size):
                            pass
        add(writer, record)

    monkeypatch.setattr(Writer, "add", full)
    with contextlib.suppress(OSError):  # a record may still fit into the journal's last page, and the model then does not
        tune(settings(folder, out))
    assert not (out / "result.json").exists()
    taken = sum(isinstance(record, Step) for record in records(out))
    assert at <= taken <= 12
    filler.unlink()
    tune(settings(folder, out), resume=True)
    require_as_far(out, straight["per-example"], taken)


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(folder, disk, capsys):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert main(["tune", "--model", str(folder), "--out", str(disk / "run"), "--steps", "2", "--minutes", "0"]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert str(disk) in said
    assert not (disk / "run").exists()


def test_a_head_that_the_model_lacks_is_the_same_again(folder, tmp_path, monkeypatch):
    """A classifier's head is drawn when the run begins, and drawn so again."""
    out = tmp_path / "run"
    given = settings(folder, out, head="classifier", steps=4, evals=1)
    assert cut_off(set_up(given), monkeypatch, "after a record", 3)
    torch.manual_seed(12345)
    assert tune(given, resume=True)["steps"] == 4


def test_more_steps_are_looked_at_and_kept(folder, tmp_path, monkeypatch):
    """A run that is given more goes on from its last weights, and its evaluations with it; cut off there it goes on so."""
    out = tmp_path / "run"
    tune(settings(folder, out))
    longer = settings(folder, out, steps=30)
    assert cut_off(set_up(longer, resume=True), monkeypatch, "after a record", 14)
    assert not (out / "result.json").exists()
    again = resumed_settings(out, {})
    assert again.steps == 30
    assert tune(again, resume=True)["steps"] == 30
    assert [row["step"] for row in rows(out) if "dev_loss" in row][-2:] == [20, 30]


@pytest.mark.parametrize("at", [3, 4])
def test_ctrl_c_in_an_evaluation_is_made_up_for(folder, straight, tmp_path, monkeypatch, at):
    out, given = tmp_path / "run", settings(folder, tmp_path / "run")
    real, calls = evaluation.answers, []

    def interrupted(*some: Any) -> Any:
        calls.append(1)
        if len(calls) == 2 + at:
            raise KeyboardInterrupt
        return real(*some)

    monkeypatch.setattr(evaluation, "answers", interrupted)
    assert "interrupted" in tune(given)["stopped"]
    monkeypatch.setattr(evaluation, "answers", real)
    assert main(["tune", "--resume", str(out)]) == 0
    assert learnt(out) == learnt(straight["per-example"])
    assert weights(out) == weights(straight["per-example"])
    assert [row["step"] for row in rows(out)] == [row["step"] for row in rows(straight["per-example"])]


def test_two_runs_do_not_share_a_folder(folder, tmp_path, monkeypatch):
    """The second leaves the first's files alone, whenever it comes."""
    out = tmp_path / "run"
    given = settings(folder, out)
    first, second = set_up(given), set_up(given)
    step, seen = first.step, []

    def stepping(examples: Any) -> float:
        if len(seen) == 2:
            before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
            with pytest.raises(journal.FileLocked, match="is being written by another process"):
                run(second)
            assert before == {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        seen.append(1)
        return step(examples)

    first.step = stepping  # type: ignore[method-assign]
    assert run(first)["steps"] == 12


def test_a_task_that_was_changed_is_refused(folder, tmp_path, monkeypatch):
    out = tmp_path / "run"
    given = settings(folder, out)
    assert cut_off(set_up(given), monkeypatch, "after a record", 5)
    made = set_up(given, resume=True)
    made.task.spec = dataclasses.replace(made.task.spec, prompt="{{ text }} so=")
    with pytest.raises(ValueError, match=r"task letters has changed since run .* began"):
        run(made)


def test_a_rate_that_diverges_in_a_range_test_leaves_no_count(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(lr_finder, "LR_FACTORS", (1.0, 2.0))
    made = set_up(settings(folder, tmp_path / "run", lr="auto"), self_check=False)
    losses, find, finding = made.objective, lr_finder.lr_range_test, []

    def found(*given: Any) -> float:
        finding.append(1)
        try:
            return find(*given)
        finally:
            finding.clear()

    def diverging(batch: Any) -> Any:
        finding.extend(finding[:1])
        return losses(batch) * (torch.nan if len(finding) > 6 else 1)

    monkeypatch.setattr(lr_finder, "lr_range_test", found)

    made.warm_up()
    monkeypatch.setattr(made, "warm_up", lambda listen: None)
    made.objective = LossObjective(diverging)
    result = run(made)
    assert (result["steps"], result["skipped_steps"]) == (12, 0)
