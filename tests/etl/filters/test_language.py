import json

import pyarrow as pa
import pytest

from etl.cli import UserError
from etl.filters.language import check_languages, in_languages

CAPTIONS = [
    "a lighthouse on a cliff",
    "悬崖上的灯塔",
    "un phare sur une falaise",
    "IMG_1234.jpg",
    None,
]


def table(captions: list[str | None], published: list[str | None] | None = None) -> pa.Table:
    languages = published or [None] * len(captions)
    lineage = [json.dumps({"language": one} if one else {}) for one in languages]
    return pa.table({"caption": pa.array(captions, pa.string()), "lineage": lineage})


def test_captions_in_other_languages_are_dropped() -> None:
    found = in_languages(table(CAPTIONS), languages=["en", "zh"], min_confidence=0.2)
    assert found.reasons == [None, None, "language", "language", None]
    assert found.details == found.columns["language"].to_pylist()
    assert found.details == ["en", "zh", "fr", "und", None]
    confidence = found.columns["score.language_confidence"].to_pylist()
    assert confidence[0] > 0.8
    assert confidence[3] < 0.05
    assert confidence[4] is None


def test_unclear_languages_are_kept_on_request() -> None:
    assert in_languages(table(["photo", "x"]), languages=["und"], min_confidence=0.2).reasons == [
        None,
        None,
    ]


def test_a_published_language_is_trusted_if_it_is_known() -> None:
    found = in_languages(
        table(["photo", "photo", "a cat on a roof"], ["en", "zh-Latn", "klingon"]),
        languages=["en"],
        min_confidence=0.2,
    )
    assert found.columns["language"].to_pylist() == ["en", "zh", "en"]
    assert found.columns["score.language_confidence"].is_valid().to_pylist() == [False, False, True]


def test_unknown_codes_are_reported() -> None:
    check_languages(["en", "und"])
    with pytest.raises(UserError, match="--languages eng: want codes of ISO 639"):
        check_languages(["en", "eng"])
