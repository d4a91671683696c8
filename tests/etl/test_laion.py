"""The filters of LAION's job before the download, for each of the lists that it reads."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.filters.base import FilteredBatch, run_filters
from etl.laion import Options
from etl.sources.parquet import Laion

URLS = [f"http://example.com/{number}.jpg" for number in range(6)]


def filtered(folder: Path, columns: dict, **changes: object) -> FilteredBatch:
    listing = folder / "list.parquet"
    pq.write_table(pa.table(columns), listing)
    options = Options(input=listing, output=folder, **changes)
    (table,) = Laion(listing).read(100)
    return run_filters(table, options.filters())


def reasons(batch: FilteredBatch) -> dict[int, str]:
    return dict(zip(batch.drops["row"].to_pylist(), batch.drops["reason"].to_pylist(), strict=True))


LAION = {
    "URL": URLS,
    "TEXT": ["a lighthouse on a cliff"] * 6,
    "WIDTH": [300, 300, 300, 10, 300, 300],
    "HEIGHT": [200] * 6,
    "similarity": [0.27, 0.3, 0.3, 0.3, 0.28, None],
    "punsafe": [0.9, 0.6, 0.1, 0.1, 0.5, None],
    "pwatermark": [0.9, 0.1, 0.9, 0.1, 0.8, None],
}
COYO = {
    "url": [*URLS[:5], URLS[0]],
    "text": ["a lighthouse on a cliff"] * 6,
    "width": [1200, 199, 900, 500, 500, 500],
    "height": [800, 500, 250, 500, 500, 500],
    "clip_similarity_vitb32": [0.3, 0.3, 0.3, 0.1, 0.3, 0.3],
    "nsfw_score_opennsfw2": [0.0] * 6,
    "nsfw_score_gantman": [0.0, 0.0, 0.0, 0.0, 0.6, 0.0],
    "watermark_score": [0.0] * 6,
    "aesthetic_score_laion_v2": [5.0] * 6,
}
DATACOMP = {
    "uid": list("abcdef"),
    "url": [*URLS[:5], URLS[0]],
    "text": ["a lighthouse on a cliff"] * 6,
    "original_width": [512, 100, 1000, 512, 512, 512],
    "original_height": [384, 384, 200, 384, 384, 384],
    "clip_b32_similarity_score": [0.3, 0.3, 0.3, 0.2, 0.3, 0.3],
    "clip_l14_similarity_score": [0.3, 0.3, 0.3, 0.3, 0.1, 0.3],
}


def test_laion(tmp_path: Path) -> None:
    assert reasons(filtered(tmp_path, LAION)) == {
        0: "similarity_too_low",
        1: "punsafe_too_high",
        2: "pwatermark_too_high",
        3: "declared_too_small",
    }


def test_coyo(tmp_path: Path) -> None:
    found = filtered(tmp_path, COYO, min_side=200, maximum=("gantman=0.5",))
    assert reasons(found) == {
        1: "declared_too_small",
        2: "declared_aspect_too_large",
        3: "similarity_too_low",
        4: "gantman_too_high",
        5: "duplicate_url",
    }


def test_datacomp(tmp_path: Path) -> None:
    found = filtered(tmp_path, DATACOMP, min_side=200, minimum=("similarity_l14=0.2",))
    assert reasons(found) == {
        1: "declared_too_small",
        2: "declared_aspect_too_large",
        3: "similarity_too_low",
        4: "similarity_l14_too_low",
        5: "duplicate_url",
    }


def test_a_policy_after_the_download_keeps_all_rows_and_their_scores(tmp_path: Path) -> None:
    found = filtered(tmp_path, LAION, policy="after")
    assert reasons(found) == {3: "declared_too_small"}
    scores = found.kept["score.similarity"].to_pylist()
    assert scores == [pytest.approx(value) for value in [0.27, 0.3, 0.3, 0.28]] + [None]


def test_languages_and_words_are_filtered_before_the_download(tmp_path: Path) -> None:
    texts = ["a lighthouse on a cliff", "悬崖上的灯塔", "lighthouse", *["ein Turm am Meer"] * 3]
    found = filtered(tmp_path, {"URL": URLS, "TEXT": texts}, languages=("en", "zh"), min_words=1)
    assert Counter(reasons(found).values()) == {"language": 3}
    assert found.kept["language"].to_pylist() == ["en", "zh", "en"]
    few = filtered(tmp_path, {"URL": URLS, "TEXT": texts}, min_words=4)
    assert Counter(reasons(few).values()) == {"caption_too_few_words": 2}
