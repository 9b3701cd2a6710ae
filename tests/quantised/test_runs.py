"""Runs on a packed base: what they write, and that it comes back from the journal to the byte."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.quantised.tiny import llama
from tests.tune.straight import small_tasks
from zerograd.quantised import gguf, models
from zerograd.quantised.formats import FORMATS
from zerograd.runs.folder import Run, open_run
from zerograd.runs.journals import find_journal, read_journal
from zerograd.runs.replayed import load, rebuilt, save_model, settings_of
from zerograd.runs.ship import open_run_or_file, ship
from zerograd.text import evaluation
from zerograd.tune import setup as setups
from zerograd.tune import tune
from zerograd.tune.settings import TuneSettings


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("base") / "tiny.gguf", layers=2)


@pytest.fixture(scope="module", autouse=True)
def tasks() -> Iterator[None]:
    with small_tasks():
        yield


def settings(base: Path, out: Path, **more: Any) -> TuneSettings:
    given: dict[str, Any] = {"minutes": 0, "steps": 6, "batch_size": 8, "threads": 1, "evals": 2, "packed": True, "keep": "last"}
    return TuneSettings(model=str(base), out=str(out), **(given | more))


def written(out: Path) -> gguf.Header:
    return gguf.header(out / "model" / "tiny.gguf")


def changed(base: Path, made: gguf.Header) -> dict[str, list[int]]:
    """By the name of each tensor whose bytes differ, where within its blocks they do."""
    before, found = gguf.header(base), {}
    for one, other in zip(before.tensors, made.tensors, strict=True):
        own, new = before.read(one).view(torch.uint8), made.read(other).view(torch.uint8)
        if one.type != other.type or not torch.equal(own, new):
            size = FORMATS[one.type_name].bytes if one.type_name in FORMATS and one.type == other.type else own.shape[-1]
            places = (own.view(-1, size) != new.view(-1, size)).any(0).nonzero() if one.type == other.type else torch.zeros(0)
            found[one.name] = places.flatten().tolist()
    return found


def loss_of(run: Run) -> float:
    """The loss of a run's model on the test rows, loaded from its files."""
    task = setups.task_of(run.settings)
    scorer = run.scorer("cpu", task)
    scorer.choose_head_path(task.test[:2])
    return evaluation.answers(scorer, task.test, 16).loss


def replayed_to(out: Path, journal: Path, base: Path) -> bytes:
    source = read_journal(find_journal(str(journal)))
    loaded, spaces = rebuilt(source, str(base))
    save_model(loaded, spaces, out, settings_of(source))
    return out.read_bytes()


@pytest.mark.full
def test_queries_and_keys_of_a_packed_base_are_written_as_q8_0_and_the_rest_as_it_was(base: Path, tmp_path: Path) -> None:
    result = tune(settings(base, tmp_path / "run", lr=0.02, steps=2))
    made = written(tmp_path / "run")
    assert set(changed(base, made)) == {"blk.1.attn_q.weight", "blk.1.attn_k.weight"}
    assert {made[name].type_name for name in changed(base, made)} == {"Q8_0"}
    assert made.values == gguf.header(base).values
    assert result["weight_bytes"] < 1.6 * base.stat().st_size
    assert sorted(path.name for path in (tmp_path / "run" / "model").iterdir()) == ["tiny.gguf"]


SCHEMES: dict[str, dict[str, Any]] = {
    "qk": {"scheme": "qk"},
    "qk in float32": {"scheme": "qk", "precision": "float32"},
    "norms": {"scheme": "norms", "lr": 0.01},
    "full": {"scheme": "full", "method": "mezo", "lr": 0.002},
    "same type": {"scheme": "qk", "gguf_type": "same"},
    "f16": {"scheme": "qk", "gguf_type": "f16"},
    "scales": {"scheme": "scales"},
    "scales by a pattern": {"scheme": "scales", "pattern": r"embed_tokens|down_proj"},
    "scales by mezo": {"scheme": "scales", "method": "mezo"},
    "scales by adam": {"scheme": "scales", "method": "adam"},
}


@pytest.mark.full
@pytest.mark.parametrize("name", SCHEMES)
def test_what_was_reported_is_what_was_written_and_the_journal_gives_its_bytes(name: str, base: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = tune(settings(base, run, **({"lr": 0.02} | SCHEMES[name])))
    made = written(run)
    assert changed(base, made)
    assert loss_of(open_run(str(run))) == pytest.approx(result["loss_after"], rel=1e-5)
    assert replayed_to(tmp_path / "again.gguf", run, base) == made.path.read_bytes()
    ship(str(run), tmp_path / "run.zg")
    assert replayed_to(tmp_path / "shipped.gguf", tmp_path / "run.zg", base) == made.path.read_bytes()
    assert loss_of(open_run_or_file(str(tmp_path / "run.zg"), str(base))) == pytest.approx(result["loss_after"], rel=0.05)


@pytest.mark.full
def test_scales_alone_differ_in_a_file_of_gains(base: Path, tmp_path: Path) -> None:
    tune(settings(base, tmp_path / "run", scheme="scales", pattern=r"self_attn", lr=0.05))
    header, made = gguf.header(base), written(tmp_path / "run")
    places = changed(base, made)
    assert set(places) == {f"blk.{i}.attn_{part}.weight" for i in range(2) for part in ("q", "k", "v", "output")}
    for name, found in places.items():
        allowed = {at + i for at in FORMATS[header[name].type_name].scales for i in range(2)}
        assert set(found) <= allowed, name


@pytest.mark.full
@pytest.mark.parametrize("scheme", ["scales", "scales-lora"])
def test_a_learning_rate_of_0_writes_the_bytes_of_the_base(scheme: str, base: Path, tmp_path: Path) -> None:
    tune(settings(base, tmp_path / "run", scheme=scheme, lr=0.0, steps=20))
    assert written(tmp_path / "run").path.read_bytes() == base.read_bytes()


@pytest.mark.full
@pytest.mark.parametrize("scheme", ["qk", "scales", "lora", "scales-lora"])
def test_a_run_that_is_cut_off_goes_on_to_the_same_bytes(scheme: str, base: Path, tmp_path: Path) -> None:
    from zerograd.tune.resume import resumed_settings

    tune(settings(base, tmp_path / "straight", scheme=scheme, lr=0.02, steps=8, evals=1))
    tune(settings(base, tmp_path / "run", scheme=scheme, lr=0.02, steps=4, evals=1, schedule="constant"))
    tune(settings(base, tmp_path / "whole", scheme=scheme, lr=0.02, steps=8, evals=1, schedule="constant"))
    tune(resumed_settings(tmp_path / "run", {"steps": 8}), resume=True)
    for path in (tmp_path / "whole" / "model").iterdir():
        if path.suffix in (".gguf", ".safetensors"):
            assert (tmp_path / "run" / "model" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.full
@pytest.mark.parametrize("scheme", ["lora", "scales-lora"])
def test_an_adapter_on_a_packed_base_is_written_for_peft_and_for_llama_cpp(scheme: str, base: Path, tmp_path: Path) -> None:
    import gguf as library
    from safetensors.torch import load_file

    run = tmp_path / "run"
    result = tune(settings(base, run, scheme=scheme, lr=0.05))
    reader = library.GGUFReader(str(run / "model" / "adapter.gguf"))
    tensors = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    theirs = load_file(run / "model" / "adapter_model.safetensors")
    q = next(v for k, v in theirs.items() if "layers.0.self_attn.q_proj.lora_B" in k)
    order = models.base_of(models.load(base)).order(gguf.header(base)["blk.0.attn_q.weight"])
    assert torch.equal(tensors["blk.0.attn_q.weight.lora_b"][order], q)
    assert reader.get_field("adapter.type").contents() == "lora"
    assert reader.get_field("adapter.lora.alpha").contents() == 16.0
    assert loss_of(open_run(str(run))) == pytest.approx(result["loss_after"], rel=1e-5)
    if scheme == "scales-lora":
        assert changed(base, written(run))


@pytest.mark.full
def test_a_packed_run_draws_the_directions_of_the_unpacked_one(base: Path, tmp_path: Path) -> None:
    results = [tune(settings(base, tmp_path / str(packed), packed=packed, lr=0.02, evals=0)) for packed in (True, False)]
    rows = [
        [json.loads(line)["loss"] for line in (tmp_path / str(packed) / "metrics.jsonl").read_text().splitlines()]
        for packed in (True, False)
    ]
    assert rows[0] == pytest.approx(rows[1], rel=1e-6)
    assert results[0]["loss_before"] == pytest.approx(results[1]["loss_before"], rel=1e-6)


@pytest.mark.full
@pytest.mark.parametrize(("lr", "steps"), [(40.0, 12), (4000.0, 24)], ids=["some back-offs", "more than there are"])
def test_a_run_of_gains_that_turn_over_goes_back_and_writes_nothing_of_the_kind(
    lr: float, steps: int, base: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    tune(settings(base, tmp_path / "run", scheme="scales", lr=lr, steps=steps, evals=steps // 2, keep="best"), say=said.append)
    assert any("back to the weights" in line for line in said)
    made, header = written(tmp_path / "run"), gguf.header(base)
    for entry in header.tensors:
        if entry.type_name in FORMATS:
            format = FORMATS[entry.type_name]
            one, other = (format.scale(h.read(h[entry.name]), 0).float() for h in (header, made))
            assert bool((one.sign() == other.sign()).all())
            assert bool(other.isfinite().all())


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "scales unpacked": (
        {"packed": False, "scheme": "scales"},
        "scheme is scales, which trains scales of packed matrices; give --packed with a .gguf file",
    ),
    "precision": ({"scheme": "scales", "precision": "split"}, "precision is split, and scheme scales keeps its gains in float32"),
    "two choices": ({"scheme": "scales", "layers": 1, "pattern": "q"}, "layers is 1 and pattern 'q'; give one of them"),
    "a type for nothing": ({"scheme": "scales", "gguf_type": "f16"}, "gguf_type is f16, and this run writes no unpacked matrix"),
    "a shape of its own": ({"scheme": "scales", "method": "hizoo"}, "method hizoo .* scheme scales"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_setting_is_one_line(name: str, base: Path, tmp_path: Path) -> None:
    given, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        settings(base, tmp_path / "run", **given)


def test_packed_with_a_model_that_is_not_quantised_says_what_it_is(tmp_path: Path) -> None:
    from tests.tune.straight import model_folder
    from zerograd.text.models import loading

    folder = model_folder(tmp_path)
    with pytest.raises(ValueError, match=r"packed is True, and model .* is not quantised; give a \.gguf file, or leave packed out"):
        loading.load(str(folder), packing=loading.FROZEN)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    other = tmp_path / "gptq"
    shutil.copytree(folder, other)
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is quantised by gptq, whose blocks are not read"):
        loading.load(str(other), packing=loading.FROZEN)


@pytest.mark.full
def test_zerograd_load_takes_a_packed_run_and_a_changed_base_is_refused(base: Path, tmp_path: Path) -> None:
    from zerograd.errors import WrongBase

    own = tmp_path / "own.gguf"
    shutil.copy(base, own)
    tune(settings(own, tmp_path / "run", scheme="scales", lr=0.05, steps=2))
    tuned = load(str(tmp_path / "run" / "model" / "own.gguf")).model
    again = load(str(tmp_path / "run" / "model")).model
    replayed = load(str(tmp_path / "run")).model
    ids = torch.arange(16).view(2, 8)
    with torch.no_grad():
        assert torch.equal(tuned(ids).logits, again(ids).logits)
        torch.testing.assert_close(replayed(ids).logits, tuned(ids).logits, rtol=0.05, atol=0.05)  # whose scales are not rounded
    data = bytearray(own.read_bytes())
    data[gguf.header(own)["blk.0.ffn_up.weight"].start + 7] ^= 1
    own.write_bytes(bytes(data))
    with pytest.raises(WrongBase, match="identity"):
        load(str(tmp_path / "run"))


def test_a_gguf_name_for_a_run_that_was_not_packed_is_refused(base: Path, tmp_path: Path) -> None:
    from zerograd.text.models import loading

    loaded = loading.load(str(base))
    with pytest.raises(ValueError, match="and the run trained no packed model; give a folder"):
        save_model(loaded, [], tmp_path / "out.gguf", settings(base, tmp_path / "run", packed=False))
