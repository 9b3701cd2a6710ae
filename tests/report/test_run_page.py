"""The report: one file that needs nothing else, says the run's numbers, and never lets data become markup."""

from __future__ import annotations

import math
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib import style

from zerograd.report import figures
from zerograd.report import run_page as report
from zerograd.report.predictions import calibration_error, mcnemar

OPTIONS = (" negative", " positive")
VOID = {"meta", "br", "link", "img", "input", "hr"}
OPENINGS = ("A warm and clever film", "The plot goes nowhere", "Two hours I will not get back", "Beautifully shot", "It tries hard")
ENDINGS = (
    "with a cast that never puts a foot wrong, even in the quiet scenes.",
    "but the jokes are older than the hills & twice as long.",
    "and the last act undoes everything that came before it, slowly and with great care, as though nobody had read it to the end.",
    "thanks to a script that trusts its audience.",
    "yet I smiled more often than I care to admit.",
)


def made_up_run(
    rows: int = 2000, steps: int = 150, seed: int = 0
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """A run as a training loop would report it: its numbers agree with its predictions."""
    rng = random.Random(seed)
    predictions = []
    for number in range(rows):
        label = int(rng.random() < 0.55)
        before = rng.gauss(0.9, 1.0)
        after = 1.25 * before + rng.gauss(0.35, 0.55)
        chosen = {f"option_{when}": OPTIONS[label if m > 0 else 1 - label] for when, m in (("before", before), ("after", after))}
        margins = {"margin_before": before, "margin_after": after, "right_before": before > 0, "right_after": after > 0}
        text = f"{rng.choice(OPENINGS)}, {rng.choice(ENDINGS)}"
        predictions.append({"id": f"movies-{number}", "text": text, "label": label, **chosen, **margins})
    history = []
    for step in range(1, steps + 1):
        loss = 0.42 + 0.25 * math.exp(-step / 40) + rng.gauss(0, 0.06)
        entry = {"step": step, "seconds": 2.0 * step, "loss": loss, "spread": 0.02 + 0.005 * rng.random(), "lr": 1e-3}
        if step % 15 == 0:
            entry |= {"dev_value": 0.815 + 0.068 * (1 - math.exp(-step / 50)) + rng.gauss(0, 0.006), "dev_loss": loss}
        history.append(entry)
    n = max(rows, 1)
    was, now = (sum(row[f"right_{when}"] for row in predictions) / n for when in ("before", "after"))
    fitted = was + 0.021
    result = {
        "model": "Qwen2.5-0.5B", "task": "sentiment-movies", "metric": "accuracy", "is_share": True,
        "method": "mezo", "scheme": "shared", "seed": 7,
        "value_before": was, "value_calibrated": fitted, "value_majority": 0.553, "value_after": now,
        "ci_before": [was - 0.017, was + 0.017], "ci_after": [now - 0.014, now + 0.014],
        "ci_calibrated": [fitted - 0.016, fitted + 0.016], "ci_gain": [now - was - 0.016, now - was + 0.016],
        "ci_gain_calibrated": [now - fitted - 0.015, now - fitted + 0.015], "test_rows": rows, "steps": steps,
        "skipped_steps": 2, "forwards": 2 * steps, "seconds": 2.0 * steps, "seconds_total": 412.7, "seconds_per_step": 1.97,
        "peak_bytes": 1_312_000_000, "inference_peak_bytes": 1_287_000_000, "weight_bytes": 988_097_824,
        "run": "runs/movies-7", "stopped": None,
        "settings": {"method": {"eps": 1e-3, "lr": 1e-3, "queries": 1}, "data": {"batch": 16, "prompt": "Review: {text}"}},
        "versions": {"zerograd": "0.1.0", "torch": "2.9.0", "python": "3.11.7"},
    }  # fmt: skip
    return result, history, predictions


class Page(HTMLParser):
    """Every element and the visible text of a page; fails where tags don't nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.words).replace("\u00a0", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)


def render(folder: Path, result: dict[str, Any], history: list[dict[str, Any]], predictions: list[dict[str, Any]]) -> Page:
    report.write(folder / "report.html", result, history, predictions)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_says_the_numbers_of_the_run(tmp_path: Path) -> None:
    result, history, predictions = made_up_run()
    page = render(tmp_path, result, history, predictions)
    before, after = (f"{100 * result[key]:.1f} %" for key in ("value_before", "value_after"))
    headline = f"{before} → {after} on 2,000 test rows in 300 s, 150 steps, 300 forward passes, no backward pass"
    assert headline in page.text
    assert page.text.count("No clear change") == page.text.count("Clear gain") == 1  # over the threshold, over zero-shot
    low, high = result["ci_gain_calibrated"]
    gained = sum(not row["right_before"] and row["right_after"] for row in predictions)
    lost = sum(row["right_before"] and not row["right_after"] for row in predictions)
    for said in (
        "55.3 %",
        "1,312 MB",
        "1,287 MB",
        "988 MB",
        "1.02 times",
        f"[{100 * low:+.1f}, {100 * high:+.1f}]".replace("-", "\u2212"),
        "runs/movies-7",
    ):
        assert said in page.text
    for said in (f"{gained} gained", f"{lost} lost", f"8 of {gained}", f"8 of {lost}", "method.eps 0.001", "torch 2.9.0"):
        assert said in page.text
    assert sum(tag == "svg" for tag, _ in page.elements) == 3
    assert sum(tag == "article" for tag, _ in page.elements) == 24
    wrong_positive = sum(row["label"] == 0 and row["option_after"] == " positive" for row in predictions)
    assert f"{wrong_positive:,} " in page.text.partition("Confusion")[2].partition("Gained and lost")[0]


def test_the_sections_stand_in_reading_order(tmp_path: Path) -> None:
    text = render(tmp_path, *made_up_run()).text
    titles = ("Result", "Training loss", "Dev accuracy", "Memory", "Confusion", "Gained and lost", "Predictions before and after")
    places = [text.index(title) for title in (*titles, "Margins of the test rows", "Settings and versions")]
    assert places == sorted(places)


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    page = render(tmp_path, *made_up_run())
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    identities = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    for tag, attrs in page.elements:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "base"}
        assert not {"src", "href", "srcset"} & attrs.keys()
        if "xlink:href" in attrs:
            assert str(attrs["xlink:href"]).removeprefix("#") in identities
    assert "http" not in source
    assert "@import" not in source
    assert all(part.startswith("url(#") for part in source.split("url")[1:] for part in [f"url{part}"])
    assert not any(colour in source for colour in figures.COLOURS.values())  # none escaped the light and dark setting


def test_data_never_becomes_markup(tmp_path: Path) -> None:
    result, history, predictions = made_up_run(rows=200)
    attack = '<script>alert("1")</script><img src=http://x.example onerror=alert(1)>'
    for row in predictions:
        row |= {"text": attack, "id": attack}
        row |= {key: attack if row[key] == OPTIONS[1] else row[key] for key in ("option_before", "option_after")}
    result |= dict.fromkeys(("model", "task", "metric", "method", "scheme", "run", "stopped"), attack)
    result |= {"settings": {attack: {attack: attack}}, "versions": {attack: attack}}
    page = render(tmp_path, result, history, predictions)
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    assert page.text.count("alert(1)") > 30
    assert "&lt;script&gt;alert(&#34;1&#34;)" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_largest_margin_changes_come_first(tmp_path: Path) -> None:
    result, history, predictions = made_up_run()
    text = render(tmp_path, result, history, predictions).text
    for title, sides in (("Gained", (False, True)), ("Lost", (True, False)), ("Still wrong", (False, False))):
        rows = [row for row in predictions if (row["right_before"], row["right_after"]) == sides]
        rows.sort(key=lambda row: abs(row["margin_before"] - row["margin_after"]), reverse=True)
        shown = [text.find(f"· {row['id']} ", text.index(f"{title} 8 of")) for row in rows[:8]]
        assert -1 not in shown
        assert shown == sorted(shown)


@pytest.mark.full
@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 5), (3, 12), (186, 50), (400, 2)])
def test_mcnemar_is_the_exact_binomial_test(gained: int, lost: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(lost, gained) == mcnemar(gained, lost)


def test_the_calibration_error_is_the_mean_gap_of_the_tenths():
    rows = [{"probability_after": p, "right_after": r} for p, r in ((0.95, True), (0.91, False), (0.62, True), (0.68, True))]
    assert calibration_error(rows, "after") == pytest.approx((2 * abs(0.5 - 0.93) + 2 * abs(1 - 0.65)) / 4)


@pytest.mark.full
def test_calibration_is_drawn_where_probabilities_are_known(tmp_path: Path) -> None:
    result, history, predictions = made_up_run(rows=200)
    assert "Calibration" not in render(tmp_path, result, history, predictions).text
    for row in predictions:
        for when in ("before", "after"):
            row[f"probability_{when}"] = 1 / (1 + math.exp(-abs(row[f"margin_{when}"])))
    page = render(tmp_path, result, history, predictions)
    assert "Expected calibration error" in page.text
    assert sum(tag == "svg" for tag, _ in page.elements) == 4


@pytest.mark.full
def test_signal_and_noise_are_explained_where_they_were_measured(tmp_path: Path) -> None:
    result, history, predictions = made_up_run(rows=20)
    assert "Signal and noise" not in render(tmp_path, result, history, predictions).text
    history[-1]["noise_scale"] = 250.0
    text = render(tmp_path, result | {"noise_scale": 250.0, "signal_to_noise": 0.128}, history, predictions).text
    assert "Noise scale, examples 250 Signal to noise of a step's batch 0.13" in text
    text = render(tmp_path, result | {"noise_scale": None, "signal_to_noise": None}, history, predictions).text
    assert "No signal was seen above the noise" in text


def test_a_run_without_steps_or_predictions_renders(tmp_path: Path) -> None:
    result, _, _ = made_up_run(rows=0, steps=0)
    text = render(tmp_path, result, [], []).text
    for said in ("No step was logged", "No evaluation was logged", "No prediction was recorded", "No margin was recorded"):
        assert said in text


def test_a_run_without_losses_or_baseline_or_bytes_renders(tmp_path: Path) -> None:
    result, history, predictions = made_up_run()
    kept = [row for row in predictions if row["right_after"]]
    result |= dict.fromkeys(("value_calibrated", "ci_calibrated", "ci_gain_calibrated", "peak_bytes"))
    result |= {"inference_peak_bytes": None, "weight_bytes": None, "stopped": "The time limit of 300 s was reached."}
    text = render(tmp_path, result, history, kept).text
    for said in ("Lost 0 of 0 No such row.", "Memory was not measured", "The time limit of 300 s was reached."):
        assert said in text
    assert "offsets" not in text


def test_odd_values_render(tmp_path: Path) -> None:
    """One step, a loss that is not finite, three options of which one is never right, texts that are empty, long or broken."""
    result, history, predictions = made_up_run(rows=30, steps=3)
    history[0]["loss"], history[1]["loss"] = math.nan, math.inf
    predictions[0] |= {"text": "", "label": 2, "option_before": " mixed", "right_before": False, "right_after": False}
    predictions[1] |= {"text": "x" * 5000, "margin_before": math.inf}
    predictions[2] |= {"text": "lone \ud800 surrogate, $x_1$ and \u0645\u0631\u062d\u0628\u0627"}
    page = render(tmp_path, result, history, predictions)
    assert "label 2" in page.text
    assert "x" * 400 not in page.text
    assert "mean of 1 logged step" in page.text


@pytest.mark.parametrize(
    ("gain", "verdict"), [([0.01, 0.03], "Clear gain"), ([-0.01, 0.01], "No clear change"), ([-0.04, -0.01], "Clear loss")]
)
def test_the_verdict_follows_the_interval(tmp_path: Path, gain: list[float], verdict: str) -> None:
    result, history, predictions = made_up_run(rows=20, steps=2)
    assert verdict in render(tmp_path, result | {"ci_gain": gain}, history, predictions).text


@pytest.mark.full
def test_the_file_is_whole_or_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made_up_run(rows=20, steps=2)
    render(tmp_path, *run)
    old = (tmp_path / "report.html").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk"):
        report.write(tmp_path / "report.html", *made_up_run(rows=20, steps=2, seed=1))
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_bytes() == old


@pytest.mark.full
def test_the_same_run_gives_the_same_bytes_under_any_plot_style(tmp_path: Path) -> None:
    run = made_up_run(rows=50, steps=20)
    render(tmp_path, *run)
    first = (tmp_path / "report.html").read_bytes()
    with style.context(["dark_background", {"text.usetex": True, "axes.grid.axis": "x", "figure.dpi": 300}]):
        render(tmp_path, *run)
    assert (tmp_path / "report.html").read_bytes() == first
