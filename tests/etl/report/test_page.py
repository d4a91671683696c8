"""Pages: one valid file, nothing fetched, no text of others interpreted as HTML."""

import io
import re
from pathlib import Path

import pytest
from PIL import Image

from etl.report.charts import bar_chart, line_chart
from etl.report.media import Embedded, embed
from etl.report.page import Card, Section, write_page
from etl.storage.schema import Medium
from tests.pages import Page

NASTY = '<script>alert("x")</script> & "quoted"'


def image(form: str, side: int = 4) -> Medium:
    stream = io.BytesIO()
    Image.effect_noise((side, side), 80).save(stream, form)
    return medium("image", stream.getvalue(), mime=NASTY)


def medium(kind: str, data: bytes, **columns: object) -> Medium:
    return Medium(**{"kind": kind, "data": data, "mime": f"{kind}/x", "sha256": ""} | columns)


def written(path: Path, *sections: Section) -> Page:
    write_page(path, title=NASTY, subtitle=NASTY, sections=sections)
    return Page(path.read_text(encoding="utf-8"))


def test_a_page_has_every_section_and_escapes_all_texts(tmp_path):
    path = tmp_path / "deep" / "report.html"
    details = [("truth", NASTY)]
    cards = [
        Card(media=[embed(image("PNG"))], text=NASTY, answer=NASTY, details=details, correct=False),
        Card(media=[embed(image("JPEG"))], text="q", answer="seven", correct=True),
        Card(media=[embed(image("WEBP"))], answer="a caption", details=[(NASTY, "so it was")]),
        Card(media=[Embedded(kind=NASTY, text=NASTY)]),
    ]
    page = written(
        path,
        Section(heading=NASTY, paragraphs=[NASTY, "über 100 %"], note=NASTY),
        Section(heading="n", tiles=[(NASTY, 12345)], facts=[("b", 0.25), ("c", NASTY)]),
        Section(heading="t", columns=(NASTY, "n"), rows=[(NASTY, 1234), ("b", 0.5), ("c", None)]),
        Section(heading="c", charts=[bar_chart(NASTY, {NASTY: 3}, notes=[NASTY])]),
        Section(heading="d", charts=[line_chart(NASTY, {NASTY: [(1, 1)], "b": []}, unit=NASTY)]),
        Section(heading="g", cards=cards),
    )
    assert page.count("script") == 0
    assert page.count("img") == 3
    assert page.count("figure", **{"class": "card correct"}) == 1
    assert page.count("figure", **{"class": "card wrong"}) == 1
    assert {"✗ " + NASTY, "✓ seven", "12,345", "0.25", "1,234", "über 100 %"} <= set(page.texts)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_page_fetches_nothing(tmp_path):
    media = [image("PNG"), image("PNG", 400), medium("video", b"v"), medium("audio", b"a")]
    chart = line_chart("loss", {"a": [(1, 2.0), (2, 1.0)]}, smooth=True)
    page = written(
        tmp_path / "report.html",
        Section(heading="c", charts=[chart]),
        Section(heading="g", cards=[Card(media=[embed(one) for one in media])]),
    )
    sources = []
    for tag, attributes in page.tags:
        assert tag not in {"link", "script", "iframe", "object"}
        for name in ("src", "href", "xlink:href"):
            if name in attributes:
                sources.append(attributes[name].partition("/")[0])
    assert sources == ["data:image", "data:image", "data:video", "data:audio"]
    assert not re.search(r"url\((?!#)|@import", (tmp_path / "report.html").read_text())


def test_sections_without_content_are_left_out(tmp_path):
    page = written(
        tmp_path / "report.html",
        Section(heading="nothing", columns=("a", "b"), note="of it"),
        Section(heading="something", paragraphs=["x"]),
    )
    assert page.count("h2") == 1
    assert {"something", "x"} <= set(page.texts)


def test_columns_of_numbers_and_of_long_texts_are_told_apart(tmp_path):
    rows = [("a 1" * 20, 1, "50.0%", "1,000 s"), ("2", None, "3%", "2 s")]
    page = written(tmp_path / "r.html", Section(heading="t", columns=tuple("abcd"), rows=rows))
    assert [row["class"] for tag, row in page.tags if tag == "th"] == ["long", "n", "n", "n"]


def test_large_images_are_scaled_down():
    small, large = embed(image("PNG")), embed(image("PNG", 800))
    assert small.uri.startswith("data:image/png;base64,")
    assert large.uri.startswith("data:image/jpeg;base64,")
    assert len(large.uri) < 200_000 < len(image("PNG", 800).data)


def test_what_no_browser_shows_is_named_with_its_size():
    assert embed(medium("points", bytes(1200), points=100)).uri is None
    assert embed(medium("points", bytes(1200), points=100)).text == (
        "points, 1,200 bytes, 100 points"
    )
    assert embed(medium("video", bytes(2_000_000))).uri is None


def test_bytes_that_are_not_an_image_are_an_error():
    with pytest.raises(ValueError, match="PNG, JPEG or WebP"):
        embed(medium("image", b"<svg onload=...>", mime="image/png"))
