"""Tasks, their splits, and scoring by option log-likelihood."""

from __future__ import annotations

import string

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.text.tiny import characters, tiny_model
from zerograd.directions import Dense, Draws, LowRank
from zerograd.evaluate.evaluator import LocalBatch
from zerograd.evaluate.hidden_cache import HiddenCache
from zerograd.evaluate.self_check import self_check
from zerograd.optim import PerExample
from zerograd.text import evaluation, scoring
from zerograd.text.data import splits
from zerograd.text.data.tasks import Example, Task, TaskSpec
from zerograd.text.models import schemes
from zerograd.text.scoring import Scorer

pytestmark = pytest.mark.full


def task(options: tuple[str, ...]) -> Task:
    texts = ["good film", "bad", "so so, really", "fine"]
    rows = [Example(str(i), {"text": text}, (i % len(options),)) for i, text in enumerate(texts)]
    return Task(TaskSpec("letters", prompt="Review: {{ text }}\nSentiment:", options=options, label="label"), rows, rows, rows)


def pieces(eos: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer that puts a space before every text, as SentencePiece's do; with eos, an end token behind it."""
    vocabulary = {c: i for i, c in enumerate(["<pad>", "</s>", "\u2581", *string.printable])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first", split=False), pre_tokenizers.Split("", "isolated")]
    )
    if eos:
        made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>")


@pytest.mark.parametrize("eos", [False, True])
def test_options_have_the_tokens_that_they_have_behind_a_prompt(eos):
    for options in (("\nNo", "\nYes"), (" no", " yes"), ("n", "p")):
        scorer = Scorer(tiny_model(), pieces(eos), task(options))
        prompt = scorer.encoder.prompt_ids(scorer.task.train[0])
        for option, ids in zip(options, scorer.encoder.options, strict=True):
            whole = scorer.tokenizer("Review: good film\nSentiment:" + option, add_special_tokens=False)["input_ids"]
            assert [*prompt, *ids] == whole


SENTIMENT = [f"sentiment-{source}" for source in ("movies", "products", "news", "tweets")]


@pytest.mark.parametrize("name", SENTIMENT)
def test_splits_are_disjoint_in_ids_and_texts_and_both_labels_occur(name):
    loaded = splits.load(name)
    seen_ids, seen_texts = set(), set()
    for split in (loaded.train, loaded.dev, loaded.test):
        ids, texts = {e.id for e in split}, {e.row["text"].strip().lower() for e in split}
        assert len(ids) == len(split)
        assert not ids & seen_ids
        assert not texts & seen_texts
        seen_ids |= ids
        seen_texts |= texts
        assert {e.label for e in split} == {0, 1}


def test_rows_without_ids_are_cut_alike_whatever_the_prompt():
    given = [{"text": f"film {i}", "label": i % 2} for i in range(60)]
    splits_of = []
    for prompt in ("{{ text }}=", "Film: {{ text }} It was"):
        made = Task(TaskSpec("cut", prompt=prompt, options=(" n", " p"), label="label"), [], [], [])
        rows = splits._split(made, {"train": made.read(given, "here"), "dev": [], "test": []}, [])
        splits_of.append([[e.row["text"] for e in split] for split in rows])
    assert splits_of[0] == splits_of[1]


def test_movies_have_two_thousand_test_rows_and_the_split_is_fixed():
    loaded = splits.load("sentiment-movies")
    assert [len(rows) for rows in (loaded.train, loaded.dev, loaded.test)] == [6671, 500, 2000]
    assert [e.id for e in loaded.test[:3]] == [e.id for e in splits.load("sentiment-movies").test[:3]]
    assert loaded.test[0].id == "movies-1930"


@pytest.mark.parametrize("options", [("n", "p"), ("bad", "good", "so-so")], ids=["one token", "several tokens"])
def test_scores_are_mean_log_likelihoods_of_the_plain_model(options):
    model, tokenizer = tiny_model(), characters()
    scorer = Scorer(model, tokenizer, task(options))
    examples = scorer.task.train
    with torch.no_grad():
        scores = scorer.scores(scorer.batch(examples))
        for example, row in zip(examples, scores, strict=True):
            expected = []
            for option in options:
                prompt = tokenizer(f"Review: {example.row['text']}\nSentiment:")["input_ids"]
                ids = prompt + tokenizer(option)["input_ids"]
                logs = model(torch.tensor([ids])).logits.log_softmax(-1)[0]
                steps = range(len(prompt) - 1, len(ids) - 1)
                expected.append(sum(float(logs[i, ids[i + 1]]) for i in steps) / len(steps))
            wanted = torch.tensor(expected).softmax(0) if scorer.one_position else torch.tensor(expected)
            assert torch.allclose(row.softmax(0) if scorer.one_position else row, wanted, atol=1e-5)


def test_padding_does_not_change_a_score():
    scorer = Scorer(tiny_model(), characters(), task(("n", "p")))
    with torch.no_grad():
        together = scorer.scores(scorer.batch(scorer.task.train))
        alone = torch.cat([scorer.scores(scorer.batch([example])) for example in scorer.task.train])
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_long_text_loses_its_end_and_keeps_the_question():
    scorer = Scorer(tiny_model(), characters(), task(("n", "p")), max_tokens=60)
    ids = scorer.encoder.prompt_ids(Example("long", {"text": "x" * 500}), 1)
    assert len(ids) + 1 == 60
    assert ids[-10:] == characters()("Sentiment:")["input_ids"]


@pytest.mark.parametrize("options", [("n", "p"), ("bad", "good", "so-so")], ids=["one token", "several tokens"])
@pytest.mark.parametrize("family", [Dense("rademacher"), LowRank("gaussian")], ids=["dense", "rank one"])
def test_the_scored_head_is_perturbed_as_really_perturbed_weights_are(options, family):
    model = tiny_model()
    scorer = Scorer(model, characters(), task(options))
    examples = scorer.task.train[:3]
    batch = scorer.batch(examples)
    optimizer = PerExample(model, self_check=False)
    directions = Draws(family, 3).at(1)
    ask = LocalBatch.of(optimizer.spaces, scorer.losses, batch)
    checked = self_check(ask, directions, optimizer.spaces, every=True)
    assert checked == len(optimizer.spaces) == len(list(model.parameters()))


def test_upper_trains_the_upper_half_or_as_many_as_asked_and_norms_only_norms():
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=5, num_attention_heads=2)
    )
    for layers, upper in ((0, {"2", "3", "4"}), (1, {"4"}), (5, {"0", "1", "2", "3", "4"})):
        schemes.select(model, "upper", layers=layers)
        assert {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad} == upper
    with pytest.raises(ValueError, match="layers is 6; this LlamaForCausalLM has 5"):
        schemes.select(model, "upper", layers=6)
    schemes.select(model, "norms")
    assert {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad} == {
        "input_layernorm",
        "post_attention_layernorm",
        "norm",
    }
    schemes.select(model, "full")
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="choose one of full, upper, qk, norms, pattern"):
        schemes.select(model, "some")


QK_OF = {
    "llama": {"q_proj", "k_proj"},
    "qwen2": {"q_proj", "k_proj"},
    "gpt2": {"c_attn"},
    "gpt_neox": {"query_key_value"},
    "bloom": {"query_key_value"},
    "falcon": {"query_key_value"},
    "opt": {"q_proj", "k_proj"},
    "phi3": {"qkv_proj"},
    "deepseek_v3": {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"},
    "bert": {"query", "key"},
    "distilbert": {"q_lin", "k_lin"},
    "deberta-v2": {"query_proj", "key_proj"},
    "modernbert": {"Wqkv"},
    "t5": {"q", "k"},
    "ctrl": {"Wq", "Wk"},
}


@pytest.mark.parametrize("kind", QK_OF)
def test_qk_trains_what_makes_queries_and_keys_in_the_upper_layers(kind):
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(kind))
    schemes.select(model, "upper")
    upper = {name for name, p in model.named_parameters() if p.requires_grad}
    schemes.select(model, "qk")
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[-2] for name in trained} == QK_OF[kind]
    assert trained < upper
    assert {name for name in upper if name.split(".")[-2] in QK_OF[kind]} == trained


def test_qk_of_a_model_without_attention_is_refused():
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model("mamba", num_hidden_layers=2))
    for head in ("causal", "classifier"):  # whose head alone is not what was asked for
        model.classifier = torch.nn.Linear(8, 2, device="meta")
        with pytest.raises(ValueError, match="scheme qk trains nothing of this MambaModel; use upper"):
            schemes.select(model, "qk", head=head)


@pytest.mark.parametrize("options", [("n", "p"), ("bad", "good", "so-so")], ids=["one token", "several tokens"])
def test_running_the_frozen_layers_once_changes_no_bit_of_a_step(options):
    """Losses, and so the whole training, are the same with the prefix and without it."""

    def trained(cut):
        model = tiny_model()
        schemes.select(model, "upper")
        scorer = Scorer(model, characters(), task(options))
        batch = scorer.batch(scorer.task.train)
        if cut:
            scorer.share_prefix(scorer.task.train)
        assert (scorer.prefix is not None) == cut
        optimizer = PerExample(model, lr=0.1, self_check="full")
        calls = []
        model.model.layers[0].register_forward_hook(lambda module, args, out: calls.append(out.shape[0]))
        losses = [optimizer.step(scorer.losses, scorer.run_prefix(batch)) for _ in range(3)]
        return losses, [p.detach().clone() for p in model.parameters()], calls

    losses, weights, calls = trained(True)
    without, others, all_calls = trained(False)
    assert losses == without
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
    rows = len(task(options).train) * (1 if len(options[0]) == 1 else len(options))
    assert calls == [rows] * 3
    assert max(all_calls) == 2 * rows


@pytest.mark.parametrize("options", [("n", "p"), ("bad", "good", "so-so")], ids=["one token", "several tokens"])
@pytest.mark.parametrize("room", [10**9, 10_000, 0], ids=["all", "some", "none"])
def test_hidden_states_of_frozen_layers_are_computed_once_and_read_back(options, room, tmp_path, monkeypatch):
    """Padding differs from batch to batch; losses do not. What finds no room on the disk is computed again."""
    model = tiny_model()
    schemes.select(model, "upper")
    scorer = Scorer(model, characters(), task(options))
    examples = scorer.task.train
    scorer.share_prefix(examples)
    cache = HiddenCache(tmp_path)
    held = cache._rows
    file = type("File", (), {"seek": held.seek, "readinto": held.readinto})()
    file.write = lambda row: held.write(row[: max(0, room - held.tell())])
    monkeypatch.setattr(cache, "_rows", file)
    rows, asked, computed = [], 0, 0
    model.model.layers[0].register_forward_hook(lambda module, args, out: rows.append(out.shape[0]))
    for chosen in ([0, 1, 2, 3], [3, 1], [2], [0, 2, 3]):
        batch = scorer.batch([examples[i] for i in chosen])
        with torch.no_grad():
            scorer.cache = None
            plain = scorer.losses(scorer.run_prefix(batch))
            rows.clear()
            scorer.cache = cache
            first = scorer.losses(scorer.run_prefix(batch))
            assert torch.allclose(first, plain, atol=1e-6)
        asked, computed = asked + len(batch.ids), computed + sum(rows)
    distinct = len(scorer.batch(examples).ids)
    tokens = int((scorer.batch(examples).last + 1).sum())
    if room == 10**9:
        assert (computed, cache.bytes) == (distinct, tokens * 32 * 4)
    elif room:
        assert distinct < computed < asked
        assert 0 < cache.bytes <= room
    else:
        assert (computed, cache.bytes) == (asked, 0)


def test_no_forward_pass_has_more_tokens_than_its_limit(monkeypatch):
    model = tiny_model()
    schemes.select(model, "upper")
    scorer = Scorer(model, characters(), task(("n", "p")))
    examples = scorer.task.train * 3
    plain = evaluation.option_scores(scorer, examples)
    batch = scorer.batch(examples)
    scorer.share_prefix(examples)
    (whole,) = scorer.run_prefix(batch).entered.states
    monkeypatch.setattr(scoring, "FORWARD_TOKENS", 100)
    seen = []
    model.model.layers[1].register_forward_hook(lambda module, args, out: seen.append(out.shape[0] * out.shape[1]))
    assert torch.allclose(torch.tensor(evaluation.option_scores(scorer, examples)), torch.tensor(plain), atol=1e-5)
    assert torch.allclose(scorer.run_prefix(batch).entered.states[0], whole, atol=1e-5)
    optimizer = PerExample(model, self_check=False)
    micro_batch = scorer.examples_per_pass(batch.ids.shape[1], 2)
    assert micro_batch == 100 // (2 * batch.ids.shape[1])
    optimizer.attach(scorer.losses, scorer.run_prefix(batch), micro_batch=micro_batch)
    assert len(seen) > 10
    assert max(seen) <= 100
