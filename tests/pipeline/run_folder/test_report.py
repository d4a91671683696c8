"""Reports: one valid file, nothing fetched, no text of others interpreted as HTML."""

import io
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from etl.cli import UserError
from pipeline.run_folder.charts import bar_chart, line_chart, running_mean
from pipeline.run_folder.metrics_writer import write_forecast
from pipeline.run_folder.page import Answer, Charts, Gallery, Table, Text, write_report
from pipeline.run_folder.report import run_report

NASTY = '<script>alert("x")</script> & "quoted"'
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Collects the tags and texts of a page, and fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())

    def count(self, tag, **attributes):
        return sum(t == tag and attributes.items() <= a.items() for t, a in self.tags)


def image(form):
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(stream, form)
    return stream.getvalue()


def metrics(steps):
    return [
        {
            "step": step,
            "samples": 8 * step,
            "tokens": 100 * step,
            "loss": 4.0 / step,
            "losses": {"text": 4.0 / step},
            "lr": 0.001,
            "grad_norm": 1.5,
            "step_seconds": 0.5,
            "tokens_per_second": 200.0,
            "padding_share": 0.1,
            "data_wait_share": 0.0,
        }
        for step in range(1, steps + 1)
    ]


def test_a_report_has_every_section_and_escapes_all_texts(tmp_path):
    path = tmp_path / "deep" / "report.html"
    answers = [
        Answer(image=image("PNG"), question=NASTY, answer=NASTY, truth=NASTY, correct=False),
        Answer(image=image("JPEG"), question="q", answer="seven", truth="seven", correct=True),
        Answer(image=image("WEBP"), question="", answer="a caption", truth="so it was"),
    ]
    sections = [
        Text(heading=NASTY, paragraphs=[NASTY, "über 100 %"]),
        Table(heading="t", columns=(NASTY, "n"), rows=[(NASTY, 12345), ("b", 0.25), ("c", None)]),
        Charts(heading="c", charts=[bar_chart(NASTY, {NASTY: 3})]),
        Gallery(heading="g", answers=answers),
    ]
    write_report(path, title=NASTY, sections=sections)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.count("script") == 0
    assert page.count("img") == 3
    assert page.count("figure", **{"class": "card correct"}) == 1
    assert page.count("figure", **{"class": "card wrong"}) == 1
    assert {"✗ " + NASTY, "✓ seven", "12,345", "0.25", "über 100 %"} <= set(page.texts)
    assert "seven" not in page.texts  # the truth is shown only next to a wrong answer
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_report_fetches_nothing(tmp_path):
    path = tmp_path / "report.html"
    answer = Answer(image=image("PNG"), question="q", answer="a", truth="t", correct=False)
    chart = line_chart("loss", {"a": [(1, 2.0), (2, 1.0)]}, smooth=True)
    sections = [Charts(heading="c", charts=[chart]), Gallery(heading="g", answers=[answer])]
    write_report(path, title="t", sections=sections)
    for tag, attributes in Page(path.read_text()).tags:
        assert tag not in {"link", "script", "iframe", "object"}
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("data:image/", "#"))
    assert not re.search(r"url\((?!#)|@import", path.read_text())


def test_bytes_that_are_not_an_image_are_an_error(tmp_path):
    answer = Answer(image=b"<svg onload=...>", question="", answer="", truth="")
    with pytest.raises(ValueError, match="PNG, JPEG or WebP"):
        write_report(
            tmp_path / "r.html", title="", sections=[Gallery(heading="", answers=[answer])]
        )
    assert not list(tmp_path.iterdir())


def test_a_run_is_reported_from_its_metrics(tmp_path):
    lines = [json.dumps(entry) for entry in metrics(30)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 31, "lo')
    page = Page(run_report(tmp_path).read_text())
    assert page.count("svg") == 5
    cells = [text for text in page.texts if text]
    summary = dict(pairwise(cells))
    assert summary["steps"] == "30"
    assert summary["samples"] == "240"
    assert summary["tokens"] == "3,000"
    assert summary["first loss"] == "4"
    assert summary["tokens per second"] == "200"


def test_a_runs_report_shows_every_recorded_metric(tmp_path):
    entries = [
        entry
        | {
            "sources": {
                "captions": {"samples": 6, "tokens": 75, "targets": 9, "loss": 2.0},
                NASTY: {"samples": 2, "tokens": 25, "targets": 0, "loss": None},
            },
            "memory_bytes": [2**30, 2**31],
            "imbalance": {"encoders": 1.5, "backbone": 1.1},
            "mfu": 0.4,
            "phase_seconds": {"data": 0.1, "forward": 0.4},
        }
        for entry in metrics(4)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    bad = {"step": 2, "position": 9, "row": 9, "id": "web-9", "reason": NASTY}
    (tmp_path / "bad_samples.jsonl").write_text(json.dumps(bad) + "\n")
    row = {"quantity": "time per step", "forecast": 1.5, "actual": None, "unit": "s"}
    write_forecast(tmp_path, [row], ["A note."])
    page = Page(run_report(tmp_path).read_text())
    assert page.count("svg") == 10
    assert page.count("script") == 0
    assert {"captions", "24", "300", "0.75", "web-9", "time per step", "A note."} <= set(page.texts)


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_missing_value_leaves_a_gap(tmp_path, value):
    entries = metrics(10)
    entries[4].update(loss=value, losses={"text": value}, grad_norm=value)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    assert "nan" not in run_report(tmp_path).read_text().lower()


def test_a_folder_without_metrics_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        run_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_charts_are_deterministic_and_do_not_share_ids():
    points = {"text": [(step, 1 / step) for step in range(1, 50)]}
    first, again = (line_chart("a", points, smooth=True) for _ in range(2))
    assert first == again
    other = line_chart("b", points, smooth=True)
    ids = [set(re.findall(r'id="([^"]+)"', chart)) for chart in (first, other)]
    assert ids[0] and not ids[0] & ids[1]


def test_charts_keep_text_as_text():
    chart = bar_chart("Dropped", {"dead link": 1200, "too small": 7}, x_label="records")
    root = ElementTree.fromstring(chart)
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"Dropped", "dead link", "too small", "1,200", "7", "records"} <= texts
    assert "width" not in root.attrib
    assert "#010203" not in chart
    assert "font-family" not in chart


@pytest.mark.parametrize("length", [0, 1, 2, 3, 5000])
def test_lines_of_any_length_can_be_drawn(length):
    chart = line_chart("t", {"a": [(x, 1.0) for x in range(length)]}, smooth=True, from_zero=True)
    ElementTree.fromstring(chart)
    assert len(chart) < 60_000


def test_the_running_mean_follows_a_slope_and_skips_non_finite_values():
    slope = np.arange(100.0)
    assert np.allclose(running_mean(slope), slope)
    slope[50] = np.nan
    assert np.isfinite(running_mean(slope)).all()
    assert np.isnan(running_mean(np.full(3, np.nan))).all()
