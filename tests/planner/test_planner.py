"""`zerograd plan`: shapes, bytes and rows against real models, and what the command line says."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import (
    LlamaForCausalLM,
    MixtralConfig,
)

from tests.planner.described import DESCRIBED, FLAGS, llama, rows_of, saved, trained
from tests.text.data.files import write
from zerograd.cli import main
from zerograd.machine import memory, yaml_files
from zerograd.optim import FZOO, METHODS
from zerograd.planner import machine, make_plan, method_cost, shapes
from zerograd.planner.settings import PlanSettings
from zerograd.planner.shapes import shape
from zerograd.text.models import loading as models
from zerograd.text.models import schemes

pytestmark = pytest.mark.full


def test_a_folder_is_counted_as_it_loads_and_no_weight_is_read(folder, tmp_path):
    there = tmp_path / "model"
    there.mkdir()
    (there / "config.json").write_text((folder / "config.json").read_text())  # and nothing else
    found = shape(PlanSettings(model=str(there)))
    for scheme in shapes.SCHEMES:
        loaded = models.load(str(folder)).model
        count = sum(p.numel() for p in loaded.parameters())
        assert found.trained[scheme] == trained(schemes.select(loaded, scheme))
        assert found.parameters == count
    layer = schemes.blocks(llama())[0]
    assert found.body == 5 * sum(p.numel() for p in layer.parameters() if p.ndim == 2)
    assert found.upper == found.body * 3 // 5


@pytest.mark.parametrize(("precision", "code"), [("auto", 0), ("float32", 2)])
def test_experts_have_a_plan_or_a_line_that_says_why_not(precision, code, tmp_path, capsys):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
    MixtralConfig(**sizes, num_key_value_heads=4, num_local_experts=4, architectures=["MixtralForCausalLM"]).save_pretrained(
        tmp_path
    )
    assert main(["plan", str(tmp_path), *FLAGS, "--precision", precision, "--json"]) == code
    says = "the memory of a pass of MixtralForCausalLM in torch.float32 is not known before it runs (" if code else ""
    assert says in capsys.readouterr().err


def test_what_is_not_told_of_free_memory_is_all_there_is(monkeypatch):
    monkeypatch.setattr(memory, "host_bytes", lambda: None)
    there, free = machine._memory("cpu")
    assert free == there > 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert memory.free_bytes() == memory.FREE_WHERE_UNKNOWN
    monkeypatch.setattr(memory, "host_bytes", lambda: 0)
    assert machine._memory("cpu") == (there, 0)
    assert memory.free_bytes() == 0


def saved_bytes(spaces):
    """Bytes of what is stored beside the model's own parameters."""
    return sum(tensor.nbytes for space in spaces for tensor in space.saved().values())


@functools.cache
def planned_once(folder, precision):
    return rows_of(model=str(folder), precision=precision)


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
@pytest.mark.parametrize("scheme", ["full", "lora"])
def test_what_adamw_keeps_is_what_it_keeps_of_a_real_model(folder, scheme, precision):
    row = planned_once(folder, precision)[f"AdamW, {scheme}"]
    how = "split" if precision == "auto" else precision
    model = schemes.select(models.load(str(folder), torch.float32 if precision == "float32" else torch.bfloat16).model, scheme)
    real = METHODS["adamw"](model, precision=None if scheme == "lora" else how)
    real.step(lambda ids: model(input_ids=ids).logits.float().square().mean((1, 2)), torch.ones(2, 4, dtype=torch.long))
    assert row.parts["state"] == pytest.approx(real.state_bytes, rel=0.02)
    assert real.state_bytes == 8 * row.trained
    assert row.parts["remainder"] == saved_bytes(real.spaces)
    assert row.parts["weights"] == sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
@pytest.mark.parametrize("scheme", shapes.SCHEMES)
def test_weights_and_remainders_are_those_of_the_optimiser(folder, scheme, precision):
    row = planned_once(folder, precision)[f"mezo, {scheme}"]
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    model = schemes.select(models.load(str(folder), dtype).model, scheme)
    how = None if precision == "auto" or scheme == "lora" else precision
    spaces = METHODS["mezo"](model, precision=how, self_check=False).spaces if precision != "bfloat16" else []
    assert row.parts["weights"] == sum(p.nbytes for p in model.parameters())
    assert row.parts["remainder"] == saved_bytes(spaces)
    assert row.trained == trained(model)


def test_inference_is_as_eval_loads_a_model(folder):
    rows = [planned_once(folder, precision)["inference"] for precision in ("auto", "float32")]
    assert rows[0] == rows[1]
    assert rows[1].parts["weights"] == sum(p.nbytes for p in models.load(str(folder)).model.parameters())


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A model of 25 million parameters, and its plan for this machine, measured."""
    path = saved(tmp_path_factory.mktemp("measured") / "model", layers=2, hidden=1024, spread=0.05)
    flags = ["--tokens", "24", "--batch-size", "8", "--threads", "1", "--device", "cpu", "--json"]
    return path, said(["plan", str(path), *flags])


@pytest.mark.parametrize(("method", "scheme"), [("mezo", "full"), ("per-example", "qk"), ("adamw", "lora")])
def test_memory_is_that_of_a_real_runs_peak(measured, tmp_path, method, scheme):
    """To a tenth; up to a fifth too much on a processor without products in bfloat16, for which oneDNN compiles no kernels."""
    path, plan = measured
    words = [{"body": ("good " if i % 2 else "bad ") * (1 + i % 3) + str(i), "topic": ["no", "yes"][i % 2]} for i in range(24)]
    data = write(tmp_path / "rows.csv", words)
    run = ["tune", "--model", str(path), "--data", str(data), "--text", "body", "--label", "topic", "--template", "{{ body }}="]
    run += ["--options", "n", "y", "--method", method, "--scheme", scheme, "--minutes", "0", "--steps", "2", "--evals", "1"]
    run += ["--batch-size", "8", "--threads", "1", "--device", "cpu", "--out", str(tmp_path / "run"), "--json"]
    result = said(run)
    row = next(row for row in plan["rows"] if (row["method"], row["scheme"]) == (method, scheme))
    over = 1.1 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else 1.2
    assert 0.9 * result["peak_bytes"] < row["memory_bytes"] < over * result["peak_bytes"]
    assert row["trained_parameters"] == result["trained_parameters"]
    assert set(plan["machine"]["measured"]) == {"flops", "bandwidth"}
    assert row["seconds_per_step"] > 0


def said(command):
    done = subprocess.run([sys.executable, "-m", "zerograd", *command], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("scheme", ["full", "lora"])
@pytest.mark.parametrize("method", ["adam", "lozo-m", "subzero", "zo-muon", "static-mask"])
def test_what_a_method_keeps_is_what_it_keeps_of_a_real_model(method, scheme):
    """Wider than what it is told from: factors grow with a matrix's sides, moments with its values."""
    config = llama(layers=2, hidden=640).config
    model = schemes.select(LlamaForCausalLM(config).to(torch.bfloat16), scheme)
    real = METHODS[method](model, self_check=False)
    real.attach(
        objective := lambda ids: model(input_ids=ids).logits.float().square().mean((1, 2)), torch.ones(2, 4, dtype=torch.long)
    )
    real.step(objective, torch.ones(2, 4, dtype=torch.long))
    found = shapes._shape_of(config, "causal", 8)
    assert method_cost.cost_of(method, found.tensors[scheme]).state == pytest.approx(real.state_bytes, rel=1e-3, abs=1000)


def test_a_factored_methods_state_is_small_beside_wide_weights():
    rows = rows_of(model="8B")
    assert rows["adam, full"].parts["state"] == pytest.approx(8 * 8e9, rel=1e-3)
    assert rows["zo-muon, full"].parts["state"] < 1e9
    assert rows["subzero, full"].parts["state"] < rows["zo-muon, full"].parts["state"]


def test_every_method_of_tune_has_its_rows_by_its_own_plan(folder, monkeypatch):
    monkeypatch.delitem(METHODS, "fzoo")
    before = rows_of(model=str(folder), batch_size=4, tokens=32, flops="1GFLOPS")
    monkeypatch.setitem(METHODS, "fzoo", FZOO)
    after = rows_of(model=str(folder), batch_size=4, tokens=32, flops="1GFLOPS")
    assert set(after) - set(before) == {f"fzoo, {scheme}" for scheme in shapes.SCHEMES}
    moments = after["adam, full"].memory - after["mezo, full"].memory
    assert moments == pytest.approx(8 * after["adam, full"].trained, rel=1e-3)
    assert {name: after[name] for name in before} == before
    assert after["fzoo, full"].memory > before["mezo, full"].memory  # nine copies of the batch, not two
    assert after["fzoo, full"].seconds > 3 * before["mezo, full"].seconds


def test_commands_are_ones_that_zerograd_takes(folder, capsys):
    for precision in ("auto", "bfloat16"):
        rows = rows_of(model=str(folder), precision=precision, batch_size=16, lora_rank=4)
        assert rows["AdamW, lora"].command != rows["AdamW, lora, checkpointing"].command
        for row in rows.values():
            program, *arguments = row.command.split()
            assert program == "zerograd"
            assert main([*arguments, "--show-config"]) == 0
            fields = yaml_files.load(capsys.readouterr().out)
            assert fields["model"] == str(folder)
            if row.method:
                assert (fields["method"], fields["scheme"], fields["batch_size"]) == (row.method, row.scheme, 16)
                assert fields["lora_rank"] == (4 if row.scheme == "lora" else 8)
                assert ("checkpointing=True" in fields["method_options"]) is ("checkpointing" in row.name)


def test_commands_run_where_they_were_planned(folder, capsys):
    some = {"head": "causal", "threads": 3, "tokens": 700}
    for row in rows_of(model=str(folder), **some).values():
        _, *arguments = row.command.split()
        assert main([*arguments, "--show-config"]) == 0
        fields = yaml_files.load(capsys.readouterr().out)
        assert {name: fields[name] for name in ("head", "device", "threads", "max_tokens")} == {
            "head": "causal", "device": "cpu", "threads": 3, "max_tokens": 700,
        }  # fmt: skip


def test_measuring_is_said(folder, monkeypatch):
    monkeypatch.setattr(machine, "measure", lambda *given: {"resident": 1, "flops": 1e12, "bandwidth": 1e10})
    said: list[str] = []
    for given in ({"memory": "16GB"}, DESCRIBED):
        settings = PlanSettings(model=str(folder), **{"device": "cpu"} | given)
        machine.machine(settings, shape(settings), said.append)
    assert said == ["measuring this machine"]


def test_methods_without_rows_are_named(folder):
    plan = make_plan(PlanSettings(model=str(folder), **DESCRIBED))
    (said,) = (line for line in plan.basis if line.startswith("no rows: "))
    named = said.removeprefix("no rows: ").partition(";")[0].split(", ")
    there = {row.method for row in plan.rows if row.method} | {row.scheme for row in plan.rows if row.scheme}
    assert sorted([*named, *there]) == sorted([*METHODS, *schemes.SCHEMES])


def test_backward_passes_hold_more_and_checkpointing_less(folder):
    rows = rows_of(model=str(folder), tokens=512)
    ours, whole = rows["per-example, upper"].parts["pass"], rows["AdamW, lora"].parts["pass"]
    kept = rows["AdamW, lora, checkpointing"].parts["pass"]
    assert ours < whole
    states = 8 * 512 * 64 * 2  # of a layer, in a pass of 4,096 tokens
    assert kept < whole - 5 * 4 * states


def test_the_advice_is_back_propagation_where_it_fits_and_forward_passes_where_it_does_not(folder):
    rows = rows_of(model="1B")
    least = min(rows["AdamW, lora"].memory, rows["AdamW, lora, checkpointing"].memory)

    def advice(memory):
        return make_plan(PlanSettings(**DESCRIBED | {"model": "1B", "memory": str(memory)})).advice

    ample = advice(rows["AdamW, full"].memory)
    assert (
        "back-propagate: AdamW, lora fits, and is the better choice: zerograd tune --model MODEL --data FILE --method adamw"
        in ample
    )
    assert "metric" in ample
    assert ample.endswith("zerograd tune --model MODEL --data FILE --device cpu")
    assert "checkpointing fits, and is the better choice" in advice(least)
    assert "no back-propagation fits" in advice(rows["per-example, lora"].memory)
    tight = advice(rows["inference"].memory - 1)
    assert "nothing fits" in tight


def test_a_gpu_without_room_for_activations_is_for_forward_passes():
    plan = make_plan(PlanSettings(model="8B", device="cuda:9", memory="17.5GB", tokens=512, batch_size=8))
    fitting = {row.name for row in plan.rows if plan.fits(row)}
    assert "per-example, lora" in fitting
    assert not any(name.startswith("AdamW") for name in fitting)
    assert plan.advice.startswith("no back-propagation fits")


def test_a_cpu_with_a_number_is_the_cpu():
    settings = [PlanSettings(model="1B", **DESCRIBED | {"device": device}) for device in ("cpu", "cpu:0")]
    places = [machine.machine(given, shape(given)) for given in settings]
    assert places[0] == places[1]
    assert places[1].is_cpu
    assert places[1].name.startswith(f"{os.cpu_count()} cores of ")


def test_the_command_line_prints_a_table_and_its_rows_as_json(folder, tmp_path, capsys):
    assert main(["plan", str(folder), *FLAGS]) == 0
    table = " ".join(capsys.readouterr().out.split())
    for part in ("per-example, upper", "AdamW, lora, checkpointing", "s/step", "16 GB", "recommendation: if the loss has"):
        assert part in table
    assert main(["plan", str(folder), *FLAGS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"machine", "model", "rows"} <= found.keys()
    assert (found["machine"]["memory_bytes"], found["machine"]["flops"]) == (16e9, 1e12)
    for row in found["rows"]:
        assert row["memory_bytes"] == sum(row["parts"].values())
        assert row["fits"] is (row["memory_bytes"] <= 16e9)
    assert main(["plan", str(folder), *FLAGS, "--tokens", "33", "--show-config"]) == 0
    config = tmp_path / "plan.yaml"
    config.write_text(capsys.readouterr().out)
    assert main(["plan", "--config", str(config), "--memory", "1MB", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert "33 tokens" in again["basis"][0]
    assert not any(row["fits"] for row in again["rows"])


BAD = {
    "nothing": ([], "the model is not given: name one, or its size as --parameters 8B"),
    "no such folder": (["./nowhere"], "model './nowhere' is not there"),
    "no such model": (["nobody/nothing"], "model 'nobody/nothing' is not there"),
    "a memory that is none": (["8B", "--memory", "much"], "memory is 'much'; write it like 24GB or 24GiB"),
    "a rate that is none": (["8B", "--memory", "1GB", "--flops", "0"], "flops is '0'; write it like 400TFLOPS"),
    "no parameters": (["--parameters", "eight"], "parameters is 'eight'; write it like 8B or 135M"),
    "a device that is not there": (["8B", "--device", "cuda:9"], "describe it with --memory, --flops and --bandwidth"),
    "no such device": (["8B", "--device", "tpu", "--memory", "1GB"], "device is 'tpu'; choose auto, cpu, cuda, cuda:N or mps"),
    "sizes of a model that has its own": (["demo", "--layers", "4"], "layers is 4, and model 'demo' has its own"),
    "two models": (["8B", "--model", "demo"], "model is 'demo', and MODEL '8B'; give one of them"),
    "two sizes": (["8B", "--parameters", "7B"], "parameters is '7B', and MODEL 8B; give one of them"),
    "heads that do not divide": (["8B", "--hidden", "64", "--heads", "33"], "heads is 33, which does not divide hidden 64"),
    "a width that has no heads": (["8B", "--hidden", "63"], "hidden is 63; heads have an even width"),
    "no tokens": (["8B", "--tokens", "0"], "tokens is 0; it must be a number of at least 1"),
    "more scored than there are": (["8B", "--answer-tokens", "65"], "answer_tokens is 65; a row has 64 tokens"),
    "a row longer than the model takes": (["demo", "--tokens", "9000"], "tokens is 9000; model 'demo' takes at most 8,192"),
    "a count that its sizes contradict": (["70B", "--layers", "32", "--hidden", "4096"], "and layers 32 and hidden 4096 make 6."),
    "a head of no model": (["8B", "--head", "masked"], "head is masked, and a model described by sizes is causal"),
    "no such precision": (["8B", "--precision", "int4"], "precision is 'int4'; choose one of auto"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case, capsys):
    arguments, says = BAD[case]
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert says in error[0]


def test_a_quantised_model_is_refused(folder, tmp_path, capsys):
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["plan", str(tmp_path), *FLAGS]) == 2
    assert "is quantised, which zerograd does not train yet" in capsys.readouterr().err
