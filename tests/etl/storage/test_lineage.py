"""URLs in a sample's lineage, and patterns of them."""

import json

import pytest

from etl.storage.lineage import url_matcher, urls_of


def test_all_urls_of_a_sample_are_found() -> None:
    lineage = {"url": "http://a/1", "page": "http://b", "row": "7", "license": "http://no"}
    urls = json.dumps(["http://a/1", "http://c/2?x=[1]"])
    assert urls_of(lineage | {"urls": urls}) == ["http://a/1", "http://b", "http://c/2?x=[1]"]
    assert urls_of({"file": "x.png"}) == ["x.png"]
    assert urls_of({}) == []


@pytest.mark.parametrize(
    ("pattern", "url", "expected"),
    [
        ("http://a/*", "http://A/1", True),
        ("http://a/*", "https://a/1", False),
        ("*a/*", "https://a/1\n", True),
        ("http://a", "http://a/1", False),
        ("http://a/?x=[1].png", "http://a/?x=[1].png", True),
        ("http://a/?x=[1].png", "http://a/yx=1.png", False),
        ("http://a/?x=[1].png", "http://a/?x=[1]_png", False),
        ("", "", True),
    ],
)
def test_a_pattern_is_a_whole_url_in_which_only_the_star_is_special(
    pattern: str, url: str, expected: bool
) -> None:
    assert url_matcher([pattern])(url) is expected
    assert url_matcher(["no", pattern])(url) is expected
    assert not url_matcher([])(url)
