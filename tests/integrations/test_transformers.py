"""The transformers shell: the same weights as our own loop, and everything of a Trainer acts."""

from __future__ import annotations

import json

import datasets
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertForTokenClassification,
    DistilBertForTokenClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from tests.text.tiny import answer_task, bart, bert, classifier, gpt2, t5, tiny_model, tokenizer
from zerograd.integrations.transformers import ZerothOrderConfig, ZerothOrderMixin
from zerograd.optim import METHODS
from zerograd.text.data import order
from zerograd.text.scoring import Batch, Scorer
from zerograd.tune.loop import Loop
from zerograd.tune.settings import TuneSettings
from zerograd.tune.setup import set_up

pytestmark = pytest.mark.full


class ZOTrainer(ZerothOrderMixin, Trainer):
    pass


class ZOSFTTrainer(ZerothOrderMixin, SFTTrainer):
    pass


def rows(count: int = 12) -> list[dict]:
    """Rows of tokens, prompts not taught."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for i in range(count):
        ids = torch.randint(2, 100, (5 + i % 4,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [-100] * 3 + ids[3:]})
    return made


def collate(some: list[dict]) -> dict:
    width = max(len(row["input_ids"]) for row in some)
    fill = {"input_ids": 0, "labels": -100}
    batch = {name: torch.tensor([row[name] + [value] * (width - len(row[name])) for row in some]) for name, value in fill.items()}
    batch["attention_mask"] = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in some])
    return batch


def arguments(folder, **more) -> TrainingArguments:
    given = {
        "output_dir": str(folder), "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 0.05, "seed": 5,
        "lr_scheduler_type": "linear", "report_to": "none", "use_cpu": True, "save_strategy": "no", "logging_steps": 1,
        "disable_tqdm": True,
    }  # fmt: skip
    return TrainingArguments(**(given | more))


def weights(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def by_hand(model, method: str, data: list[dict], steps: int, size: int = 4, **options) -> list[torch.Tensor]:
    """Our own loop: the objective of the scorer, the order of `zerograd tune`, a linear schedule."""
    task = answer_task()
    scorer = Scorer(model, tokenizer(), task)
    optimizer = METHODS[method](model, lr=0.05, seed=5, self_check=False, **options)
    dataset = order.batches([len(row["input_ids"]) for row in data], size, 5)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        batch = collate([data[i] for i in next(dataset)])
        ids, labels = batch["input_ids"], batch["labels"]
        targets = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], 1)
        first = ids[:, 0]
        optimizer.step(scorer.losses, Batch(ids, first, first, torch.arange(len(ids)), targets))
    return weights(model)


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        *((name, torch.bfloat16) for name in ("mezo", "per-example", "fzoo", "adam", "lozo-m", "hizoo", "conservative")),
        *((name, torch.float32) for name in ("mezo", "per-example")),
    ],
)
def test_a_trainer_gives_the_weights_of_our_own_loop_bit_for_bit(tmp_path, method, dtype):
    model = tiny_model().to(dtype)
    config = ZerothOrderConfig(method=method, options={"self_check": False})
    trainer = ZOTrainer(model, arguments(tmp_path), train_dataset=rows(), data_collator=collate, zeroth_order=config)
    trainer.train()
    assert same(weights(model), by_hand(tiny_model().to(dtype), method, rows(), 6))
    assert not same(weights(model), weights(tiny_model().to(dtype)))


@pytest.mark.parametrize("method", ["mezo", "per-example"])
def test_trainer_and_sft_trainer_give_the_weights_of_zerograd_tune_bit_for_bit(tmp_path, method):
    """The same folder model, prompts and completions, batch size, learning rate, schedule, smoothing radius and seed."""
    folder, data = tmp_path / "model", tmp_path / "pairs.jsonl"
    tiny_model().to(torch.bfloat16).save_pretrained(folder)
    made = tokenizer()
    made.eos_token = "!"
    made.save_pretrained(folder)
    data.write_text("".join(json.dumps({"prompt": f"{i}+{i}=", "completion": f"{2 * i}"}) + "\n" for i in range(40)))
    settings = TuneSettings(
        model=str(folder), data=(str(data),), out=str(tmp_path / "run"), scheme="full", method=method, batch_size=4, minutes=0,
        steps=7, lr=0.03, seed=11, evals=0, threads=1,
    ).resolved()  # fmt: skip
    tuning = set_up(settings)
    Loop(tuning).run()
    expected = weights(tuning.model)
    examples = [(tuning.scorer.encoder.prompt_ids(e), tuning.scorer.encoder.answer_ids(e)) for e in tuning.task.train]
    config = ZerothOrderConfig(method=method, eps=settings.eps, seed=11)
    common = {"max_steps": 7, "learning_rate": 0.03}

    tokens = [{"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer} for prompt, answer in examples]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    ZOTrainer(model, arguments(tmp_path, **common), train_dataset=tokens, data_collator=collate, zeroth_order=config).train()
    assert same(weights(model), expected)

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    texts = datasets.Dataset.from_list([{name: e.row[name] for name in ("prompt", "completion")} for e in tuning.task.train])
    plain = {k: v for k, v in arguments(tmp_path, **common).to_dict().items() if k in ("output_dir", "max_steps", "learning_rate")}
    args = SFTConfig(
        **plain, per_device_train_batch_size=4, lr_scheduler_type="linear", report_to="none", use_cpu=True, save_strategy="no",
        disable_tqdm=True, bf16=False, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = ZOSFTTrainer(
        model, args, train_dataset=texts, processing_class=AutoTokenizer.from_pretrained(folder), zeroth_order=config
    )
    trainer.train()
    assert same(weights(model), expected)
    assert not same(expected, weights(tiny_model().to(torch.bfloat16)))


def test_schedulers_callbacks_logging_and_evaluation_act(tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(state.global_step)

    args = arguments(tmp_path, eval_strategy="steps", eval_steps=3)
    trainer = ZOTrainer(
        tiny_model(), args, train_dataset=rows(), eval_dataset=rows(4), data_collator=collate, callbacks=[Watch()],
        zeroth_order=ZerothOrderConfig(method="mezo"),
    )  # fmt: skip
    trainer.train()
    assert seen == [1, 2, 3, 4, 5, 6]
    history = trainer.state.log_history
    rates = [row["learning_rate"] for row in history if "learning_rate" in row]
    assert rates == pytest.approx([0.05 * (1 - step / 6) for step in range(6)])
    losses = [row["loss"] for row in history if "loss" in row]
    assert len(losses) == 6
    assert all(3 < loss < 9 for loss in losses)
    assert len([row for row in history if "eval_loss" in row]) == 2


def test_a_run_resumed_from_a_checkpoint_ends_with_the_same_weights(tmp_path):
    def trainer(folder, **more):
        return ZOTrainer(
            tiny_model().to(torch.bfloat16), arguments(folder, save_strategy="steps", save_steps=2, **more), train_dataset=rows(),
            data_collator=collate, zeroth_order=ZerothOrderConfig(options={"self_check": False}),
        )  # fmt: skip

    whole = trainer(tmp_path / "a")
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 4

    first = trainer(tmp_path / "b")
    first.add_callback(Stop())
    first.train()
    assert not same(weights(first.model), weights(whole.model))
    second = trainer(tmp_path / "b")
    second.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-4"))
    assert second.state.global_step == 6
    assert same(weights(second.model), weights(whole.model))
    names = {path.name for path in (tmp_path / "b" / "checkpoint-4").iterdir()}
    assert "model.safetensors" in names
    assert json.loads((tmp_path / "b" / "checkpoint-4" / "trainer_state.json").read_text())["global_step"] == 4


def test_accumulated_batches_are_one_step_of_all_of_them(tmp_path):
    data = [{**row, "input_ids": row["input_ids"][:5], "labels": row["labels"][:5]} for row in rows(8)]
    made = []
    for size, accumulated in ((8, 1), (2, 4)):
        model = tiny_model()
        args = arguments(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=accumulated, max_steps=2)
        trainer = ZOTrainer(
            model,
            args,
            train_dataset=data,
            data_collator=collate,
            zeroth_order=ZerothOrderConfig("mezo", options={"self_check": False}),
        )
        trainer._get_train_sampler = lambda dataset=None: torch.utils.data.SequentialSampler(data)
        trainer.train()
        made.append(weights(model))
        assert trainer.optimizer.optimizer.steps == 2
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*made, strict=True))
    assert not same(made[0], weights(tiny_model()))


def test_a_classifier_and_a_model_that_pads_on_the_left_are_trained(tmp_path):
    data = [{"input_ids": [5 + i, 6, 7], "attention_mask": [1, 1, 1], "labels": i % 2} for i in range(8)]
    model = classifier()
    ZOTrainer(model, arguments(tmp_path), train_dataset=data, zeroth_order=ZerothOrderConfig("mezo")).train()
    assert not same(weights(model), weights(classifier()))

    def left(some):
        batch = collate(some)
        return {name: value.flip(1) for name, value in batch.items()}

    model = tiny_model()
    trainer = ZOTrainer(
        model, arguments(tmp_path), train_dataset=rows(), data_collator=left, zeroth_order=ZerothOrderConfig("mezo")
    )
    trainer.train()
    assert not same(weights(model), weights(tiny_model()))


@pytest.mark.parametrize("build", [tiny_model, gpt2, bert, t5, bart], ids=lambda build: build.__name__)
def test_the_loss_of_a_step_is_that_of_the_model_itself(tmp_path, build):
    """Of every kind of model, padding included: labels are shifted where the model shifts them, and padding is not seen."""
    model = build()
    trainer = ZOTrainer(
        model, arguments(tmp_path, max_steps=1, learning_rate=0.0), train_dataset=rows(), data_collator=collate,
        zeroth_order=ZerothOrderConfig("mezo", eps=1e-6, options={"self_check": False}),
    )  # fmt: skip
    batch = collate([trainer.train_dataset[i] for i in trainer._get_train_sampler()][:4])
    trainer.train()
    with torch.no_grad():
        expected = float(model(**batch).loss)
    assert [row["loss"] for row in trainer.state.log_history if "loss" in row] == pytest.approx([expected], rel=2e-4)


def test_label_smoothing_is_a_closure(tmp_path):
    """Trainer's own computation takes the labels out of the batch that it is given."""
    model = tiny_model()
    args = arguments(tmp_path, label_smoothing_factor=0.1, max_steps=2)
    ZOTrainer(model, args, train_dataset=rows(), data_collator=collate, zeroth_order=ZerothOrderConfig("mezo")).train()
    assert not same(weights(model), weights(tiny_model()))


@pytest.mark.parametrize("kind", [BertForTokenClassification, DistilBertForTokenClassification])
def test_labels_of_tokens_that_are_classified_stand_at_the_tokens(kind, tmp_path):
    torch.manual_seed(0)
    model = kind(kind.config_class(vocab_size=104, hidden_size=32, dim=32, num_hidden_layers=2, n_layers=2, num_attention_heads=4,
        n_heads=4, intermediate_size=48, hidden_dim=48, num_labels=3, initializer_range=0.2)).eval()  # fmt: skip
    given = [{"input_ids": [5 + i, 7, 9 + i, 4], "labels": [i % 3, -100, 2, 1]} for i in range(4)]
    args = arguments(tmp_path, max_steps=1, learning_rate=0.0)
    trainer = ZOTrainer(model, args, train_dataset=given, data_collator=collate, zeroth_order=ZerothOrderConfig("mezo", eps=1e-6))
    trainer.train()
    with torch.no_grad():
        expected = float(model(**collate(given)).loss)
    assert [row["loss"] for row in trainer.state.log_history if "loss" in row] == pytest.approx([expected], rel=2e-4)


def test_label_smoothing_is_not_left_out_silently(tmp_path):
    args = arguments(tmp_path, label_smoothing_factor=0.1, max_steps=1, learning_rate=0.0)
    trainer = ZOTrainer(tiny_model(), args, train_dataset=rows(), data_collator=collate)
    with pytest.raises(ValueError, match="which method per-example needs; use method mezo"):
        trainer.train()


def test_a_loss_of_the_users_own_is_a_closure(tmp_path):
    calls = []

    class Own(ZOTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **more):
            calls.append(1)
            loss = model(inputs["input_ids"]).logits.square().mean()
            return (loss, None) if return_outputs else loss

    model = tiny_model()
    Own(model, arguments(tmp_path), train_dataset=rows(), data_collator=collate, zeroth_order=ZerothOrderConfig("mezo")).train()
    assert calls
    assert not same(weights(model), weights(tiny_model()))
    trainer = Own(tiny_model(), arguments(tmp_path), train_dataset=rows(), data_collator=collate)
    with pytest.raises(ValueError, match="which method per-example needs; use method mezo"):
        trainer.train()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"bf16": True}, "load the model in bfloat16"),
        ({"gradient_checkpointing": True}, "for backward passes, which this trainer does not take"),
    ],
)
def test_arguments_that_a_forward_cannot_have_are_refused(tmp_path, more, says):
    with pytest.raises(ValueError, match=says):
        ZOTrainer(tiny_model(), arguments(tmp_path, **more), train_dataset=rows(), data_collator=collate)
    with pytest.raises(ValueError, match="method is 'lion'; choose one of mezo, per-example"):
        ZerothOrderConfig(method="lion")
    with pytest.raises(ValueError, match="method is 'adamw', which takes backward passes"):
        ZerothOrderConfig(method="adamw")
    with pytest.raises(ValueError, match=r"eps is 0\.1, and method forward-gradient perturbs nothing; leave it out"):
        ZerothOrderConfig(method="forward-gradient", eps=0.1)


def test_the_order_of_an_epoch_has_the_length_that_it_says():
    from zerograd.integrations.transformers import ZerothOrderSampler

    for count in (1, 3, 4, 7, 40, 300):
        drawn = ZerothOrderSampler([i % 7 for i in range(count)], 4, 0)
        assert len(drawn) == len(list(drawn))
        drawn.set_epoch(1)
        assert len(list(drawn)) == len(drawn)
