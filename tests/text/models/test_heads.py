"""Models with other heads, and adapters: what is scored is what the plain model says, perturbed or not."""

from __future__ import annotations

import math

import peft
import pytest
import torch

from tests.text.tiny import (
    answer_task,
    bart,
    bert,
    choice_task,
    classifier,
    gemma,
    gpt2,
    opt,
    options_task,
    pooled,
    roberta,
    t5,
    tiny_model,
    tokenizer,
)
from zerograd.directions import Dense, Draws, LowRank
from zerograd.evaluate.evaluator import LocalBatch
from zerograd.evaluate.self_check import self_check
from zerograd.optim import MeZO, PerExample
from zerograd.text import evaluation
from zerograd.text.data.tasks import Example, Task, TaskSpec
from zerograd.text.generation import generate
from zerograd.text.models import schemes, virtual
from zerograd.text.scoring import Scorer

pytestmark = pytest.mark.full

CASES = {
    "llama, options": (tiny_model, "causal", options_task(), "decoder"),
    "llama, long options": (tiny_model, "causal", options_task(("bad", "good", "so-so")), "decoder"),
    "llama, answers": (tiny_model, "causal", answer_task(), "decoder"),
    "llama, choices": (tiny_model, "causal", choice_task(), "decoder"),
    "gpt2, options": (gpt2, "causal", options_task(), "decoder"),
    "opt with projections, answers": (opt, "causal", answer_task(), "decoder"),
    "gemma2 with capped logits, answers": (gemma, "causal", answer_task(), "logits"),
    "gemma2 with capped logits, options": (gemma, "causal", options_task(), "logits"),
    "bert": (bert, "masked", options_task(prompt="{{ text }}={{ mask }}."), "caught"),
    "roberta": (roberta, "masked", options_task(prompt="{{ mask }}: {{ text }}"), "caught"),
    "t5, options": (t5, "seq2seq", options_task(), "caught"),
    "t5 untied, long options": (lambda: t5(False), "seq2seq", options_task(("bad", "good", "so-so")), "caught"),
    "bart, answers": (bart, "seq2seq", answer_task(), "caught"),
    "bart, choices": (bart, "seq2seq", choice_task(), "caught"),
    "roberta classifier": (classifier, "classifier", options_task(), "decoder"),
    "llama classifier": (pooled, "classifier", options_task(), "decoder"),
}
cases = pytest.mark.parametrize("case", CASES)


def made(case: str) -> tuple[Scorer, str]:
    build, head, task, way = CASES[case]
    scorer = Scorer(build(), tokenizer(mask=head == "masked"), task, head)
    scorer.choose_head_path(task.train[:2])
    return scorer, way


@pytest.mark.parametrize(("names", "order"), [(["P", "n"], [1, 0]), (["n", "p"], [0, 1]), (["good", "bad"], [0, 1])])
def test_a_classifiers_labels_are_the_options_of_their_names(names, order):
    model, task = classifier(), options_task()
    model.config.id2label = dict(enumerate(names))
    scorer = Scorer(model, tokenizer(), task, "classifier")
    batch = scorer.batch(task.train[:2])
    plain = model(input_ids=batch.ids, attention_mask=batch.attention).logits
    assert torch.equal(scorer.scores(batch), plain[:, order])


@cases
def test_a_cut_model_has_the_scores_of_the_whole_one(case):
    """Where the head sees something else than states, nothing is cut."""
    scorer, way = made(case)
    schemes.select(scorer.model, "upper")
    batch = scorer.batch(scorer.task.train[:2])
    whole = scorer.scores(batch)
    scorer.share_prefix(scorer.task.train[:2])
    assert torch.equal(scorer.scores(scorer.run_prefix(batch)), whole)
    assert (scorer.prefix is not None) == (way != "logits")
    assert torch.equal(scorer.scores(batch), whole)


@cases
def test_scores_are_those_of_the_plain_model_row_by_row(case):
    """Computed here from the plain model's logits, one row and one option at a time, without padding."""
    scorer, way = made(case)
    assert scorer.head_path == way
    kind = scorer.task.spec.kind
    examples = scorer.task.train
    together = [] if kind == "answer" else evaluation.option_scores(scorer, examples)
    with torch.no_grad():
        for i, example in enumerate(examples):
            if kind == "answer":
                (ours,) = evaluation.answers(scorer, [example]).losses
                assert ours == pytest.approx(-plain(scorer, example)[0], abs=2e-4)
                continue
            expected = torch.tensor(plain(scorer, example))
            found = torch.tensor(together[i])
            if scorer.one_position:
                expected, found = expected.log_softmax(0), found.log_softmax(0)
            assert torch.allclose(found, expected, atol=2e-4)


def plain(scorer: Scorer, example: Example) -> list[float]:
    """The mean log-likelihood of every option, or of the answer."""
    encoder, model = scorer.encoder, scorer.model
    kind = scorer.task.spec.kind
    answers = [encoder.answer_ids(example)] if kind == "answer" else encoder.option_ids(example)
    prompt = torch.tensor([encoder.prompt_ids(example)])
    if scorer.head == "classifier":
        return model(prompt).logits[0].tolist()
    if scorer.head == "masked":
        position = prompt[0].tolist().index(scorer.tokenizer.mask_token_id)
        logs = model(prompt).logits[0, position].log_softmax(0)
        return [float(logs[ids[0]]) for ids in answers]
    found = []
    for ids in answers:
        if scorer.head == "seq2seq":
            start = model.config.decoder_start_token_id
            logits = model(prompt, decoder_input_ids=torch.tensor([[start, *ids[:-1]]])).logits[0]
        else:
            logits = model(torch.cat([prompt, torch.tensor([ids])], 1)).logits[0, prompt.shape[1] - 1 : -1]
        found.append(float(logits.log_softmax(1)[range(len(ids)), ids].mean()))
    return found


@pytest.mark.parametrize(
    ("case", "family"),
    [
        *(pytest.param(case, Dense(), id=f"{case}, dense") for case in CASES),
        *(
            pytest.param(case, LowRank("gaussian"), id=f"{case}, rank one")
            for case in ("llama, long options", "gemma2 with capped logits, answers", "bert", "t5, options", "roberta classifier")
        ),
    ],
)
def test_losses_are_perturbed_as_really_perturbed_weights_are(case, family):
    scorer, _ = made(case)
    examples = scorer.task.train[:3]
    batch = scorer.batch(examples, for_training=True)
    optimizer = PerExample(scorer.model, self_check=False)
    directions = Draws(family, 3).at(1)
    ask = LocalBatch.of(optimizer.spaces, scorer.losses, batch)
    checked = self_check(ask, directions, optimizer.spaces, every=True)
    assert checked == len(optimizer.spaces) == len({id(p) for p in scorer.model.parameters()})


ADAPTED = {"lora": {}, "prompt": {}, "prefix": {}}


def adapted(scheme: str, task: Task | None = None, dtype: torch.dtype = torch.float32) -> Scorer:
    model = schemes.select(tiny_model().to(dtype), scheme, virtual_tokens=3, lora_rank=2)
    scorer = Scorer(model, tokenizer(), task or options_task())
    scorer.choose_head_path(scorer.task.train[:2])
    return scorer


@pytest.mark.parametrize("scheme", ADAPTED)
@pytest.mark.parametrize("task", [options_task(), answer_task()], ids=["options", "answers"])
@pytest.mark.parametrize("family", [Dense("rademacher"), LowRank("gaussian")], ids=["dense", "rank one"])
def test_an_adapter_is_perturbed_as_a_really_perturbed_one_is(scheme, task, family):
    scorer = adapted(scheme, task)
    batch = scorer.batch(task.train[:3], for_training=True)
    optimizer = MeZO(scorer.model, self_check=False)
    assert all("lora_" in s.name or "prompt_encoder" in s.name for s in optimizer.spaces)
    directions = Draws(family, 3).at(1)
    ask = LocalBatch.of(optimizer.spaces, scorer.losses, batch)
    checked = self_check(ask, directions, optimizer.spaces, every=True)
    assert checked == len(optimizer.spaces)


@pytest.mark.parametrize("scheme", ["prompt", "prefix"])
def test_virtual_tokens_start_as_real_ones(scheme):
    """A prefix of real activations is what the model would have seen, had the tokens stood before the prompt."""
    scorer = adapted(scheme)
    torch.manual_seed(0)
    base = scorer.model.get_base_model()
    tokens = virtual._random_tokens(scorer.model, 3)
    if scheme == "prompt":
        return assert_embeddings(scorer, base)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        virtual.start_prefix(scorer.model)
    batch = scorer.batch(scorer.task.train[:1])
    with torch.no_grad():
        ours = scorer.scores(batch)
        whole = base(torch.cat([tokens, batch.ids], 1)).logits[:, -1]
    assert torch.allclose(ours[0], whole[0, scorer._columns], atol=1e-4)
    return None


def assert_embeddings(scorer: Scorer, base) -> None:
    table = base.get_input_embeddings().weight
    prompt = scorer.model.prompt_encoder["default"].embedding.weight
    assert all(any(torch.equal(row, other) for other in table) for row in prompt)


@pytest.mark.parametrize("scheme", ADAPTED)
def test_a_trained_adapter_is_loaded_by_plain_peft_and_scores_the_same(scheme, tmp_path):
    scorer = adapted(scheme)
    batch = scorer.batch(scorer.task.train)
    optimizer = PerExample(scorer.model, lr=0.3)
    before = [p.detach().clone() for p in scorer.model.get_base_model().parameters() if not p.requires_grad]
    for _ in range(3):
        optimizer.step(scorer.losses, batch)
    frozen = [p for p in scorer.model.get_base_model().parameters() if not p.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))
    scorer.model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".md"}
    loaded = peft.PeftModel.from_pretrained(tiny_model(), tmp_path).eval()
    with torch.no_grad():
        ours = scorer.scores(batch)
        for row, (ids, last) in enumerate(zip(batch.ids, batch.last, strict=True)):
            theirs = loaded(ids[None, : last + 1]).logits[0, -1, scorer._columns]
            assert torch.allclose(ours[row], theirs, atol=1e-4)


@pytest.mark.parametrize("case", ["llama, answers", "bart, answers"])
def test_answers_are_generated_greedily_whatever_the_padding_and_end_where_the_task_says(case):
    scorer, _ = made(case)
    examples = scorer.task.train
    together = generate(scorer, examples, new_tokens=6, rows=3)
    assert together == [generate(scorer, [example], new_tokens=6)[0] for example in examples]
    assert all("!" not in answer for answer in together)
    for example, answer in zip(examples, together, strict=True):
        assert greedy(scorer, example, 6).split("!")[0].strip() == answer


def greedy(scorer: Scorer, example: Example, count: int) -> str:
    prompt = scorer.encoder.prompt_ids(example)
    ids = [] if scorer.head == "causal" else [scorer.model.config.decoder_start_token_id]
    with torch.no_grad():
        for _ in range(count):
            if scorer.head == "causal":
                logits = scorer.model(torch.tensor([prompt + ids])).logits[0, -1]
            else:
                logits = scorer.model(torch.tensor([prompt]), decoder_input_ids=torch.tensor([ids])).logits[0, -1]
            ids.append(int(logits.argmax()))
    return scorer.tokenizer.decode(ids[len(ids) - count :], skip_special_tokens=True)  # without a decoder's start


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("n", ""), "option '' has no token in this model's vocabulary; choose another word"),
        (("é", "ü"), "options 'é' and 'ü' have the same tokens in this model; choose other words"),
        (("n", "x" * 70), "has 70 tokens, and a row has at most 64; choose a shorter one"),
    ],
)
def test_options_that_cannot_be_told_apart_or_do_not_fit_are_refused(options, says):
    with pytest.raises(ValueError, match=r".") as raised:
        Scorer(gpt2(), tokenizer(), options_task(options))
    assert says in str(raised.value)


def test_a_task_that_a_head_cannot_answer_is_refused():
    for build, head, task, says in (
        (bert, "masked", options_task(), "has no {{ mask }}"),
        (bert, "masked", answer_task(), "a masked model answers with one token"),
        (
            bert,
            "masked",
            options_task(("no", "yes"), "{{ text }}{{ mask }}"),
            "option 'no' is 2 tokens; a masked model answers with one",
        ),
        (classifier, "classifier", answer_task(), "a classifier answers with one of its labels"),
        (classifier, "classifier", options_task(("a", "b", "c")), "has 2 labels, and task letters has 3 options"),
        (tiny_model, "causal", Task(TaskSpec("chat", messages="messages")), "has no chat template"),
    ):
        with pytest.raises(ValueError, match=r".") as raised:
            Scorer(build(), tokenizer(mask=True), task, head)
        assert says in str(raised.value)
    with pytest.raises(ValueError, match="no mask token"):
        Scorer(bert(), tokenizer(), options_task(prompt="{{ text }}{{ mask }}"), "masked")


def test_conversations_are_written_by_the_models_template_and_only_the_answer_is_taught():
    chat = tokenizer()
    chat.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }};\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    spec = TaskSpec("chat", messages="messages")
    talk = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "four"}]
    found = Task(spec).read([{"messages": talk}], "d")
    scorer = Scorer(tiny_model(), chat, Task(spec, found, found, found))
    batch = scorer.batch(found)
    text = chat.decode(batch.ids[0]).replace(" ", "")
    assert text.replace("\n", "") == "<user>2+2;<assistant>four;"
    taught = batch.targets[0][batch.targets[0] >= 0]
    assert chat.decode(taught).replace(" ", "") == "four;"
    with pytest.raises(ValueError, match="the last of messages is the user's"):
        Task(spec).read([{"messages": talk[:1]}], "d")
    with pytest.raises(ValueError, match="must be a list of objects with role and content"):
        Task(spec).read([{"messages": "hello"}], "d")


def test_demonstrations_stand_before_the_prompt_and_fit_half_the_room():
    scorer = Scorer(tiny_model(), tokenizer(), options_task(), max_tokens=60)
    example = scorer.task.train[3]
    plain_ids = scorer.encoder.prompt_ids(example)
    with scorer.encoder.demonstrating(scorer.task.train[:3]):
        shown = scorer.tokenizer.decode(scorer.encoder.prompt_ids(example)).replace(" ", "")
        assert shown.replace("\n", "|") == "goodfilm=n||bad=p||fine="
    assert scorer.encoder.prompt_ids(example) == plain_ids
    with (
        pytest.raises(ValueError, match="no demonstration fits half of 16 tokens"),
        Scorer(tiny_model(), tokenizer(), options_task(), max_tokens=16).encoder.demonstrating(scorer.task.train[:1]),
    ):
        pass


def test_rows_without_labels_are_answered_and_have_no_loss():
    scorer, _ = made("llama, options")
    said = evaluation.answers(scorer, [Example("new", {"text": "fresh"})])
    assert said.texts[0] in ("n", "p")
    assert math.isnan(said.losses[0])


@pytest.mark.parametrize("task", [options_task(), choice_task()], ids=["common options", "own options"])
def test_calibrated_answers_leave_out_what_options_score_without_content(task):
    """By hand, one row at a time."""
    scorer = Scorer(tiny_model(), tokenizer(), task)
    said = evaluation.answers(scorer, task.train)
    found = evaluation.calibrated(scorer, task.train, said)
    for i, example in enumerate(task.train):
        row = {**example.row, "text": "N/A"}
        (prior,) = evaluation.option_scores(scorer, [Example("x", row, example.labels, example.options)])
        expected = [s - p for s, p in zip(said.scores[i], prior, strict=True)]
        assert found.scores[i] == pytest.approx(expected, abs=1e-4)
        assert found.texts[i] == evaluation.option_texts(scorer, example)[evaluation.best(expected)]
