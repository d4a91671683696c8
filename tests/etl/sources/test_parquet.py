"""Lists of pairs in parquet: a few rows of each, with its published columns and types."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.cli import UserError
from etl.sources.base import CANDIDATES
from etl.sources.parquet import Laion

URLS = ["http://example.com/0.jpg", "http://example.com/1.jpg"]
TEXTS = ["a lighthouse on a cliff", "ein Leuchtturm"]

LAION_400M = {
    "SAMPLE_ID": pa.array([1581282014547, 2], pa.float64()),
    "URL": URLS,
    "TEXT": TEXTS,
    "HEIGHT": pa.array([225, 600], pa.int32()),
    "WIDTH": pa.array([300, 800], pa.int32()),
    "LICENSE": ["?", None],
    "NSFW": ["UNLIKELY", "UNSURE"],
    "similarity": pa.array([0.33, 0.41], pa.float64()),
}
LAION_5B_ZH = {
    "SAMPLE_ID": pa.array([1, 2], pa.int64()),
    "URL": URLS,
    "TEXT": ["悬崖上的灯塔", "一只猫"],
    "HEIGHT": pa.array([225.0, None], pa.float64()),
    "WIDTH": pa.array([300.0, None], pa.float64()),
    "LICENSE": ["?", "?"],
    "LANGUAGE": ["zh", "zh"],
    "NSFW": ["UNLIKELY", None],
    "similarity": pa.array([0.29, 0.31], pa.float32()),
    "hash": pa.array([-3717459834, 17], pa.int64()),
    "pwatermark": pa.array([0.1, 0.9], pa.float32()),
    "punsafe": pa.array([0.0, 0.2], pa.float32()),
}
LAION_COCO = {
    "URL": URLS,
    "TEXT": ["IMG_1.jpg", "photo"],
    "top_caption": ["a lighthouse at dusk", "a cat on a roof"],
    "all_captions": [["a lighthouse at dusk", "a tower"], ["a cat on a roof"]],
    "all_similarities": [[0.35, 0.3], [0.36]],
    "WIDTH": pa.array([512, 384], pa.int64()),
    "HEIGHT": pa.array([512, 384], pa.int64()),
    "similarity": pa.array([0.35, 0.36], pa.float64()),
    "hash": pa.array([5, 6], pa.int64()),
    "pwatermark": pa.array([0.2, 0.3], pa.float64()),
    "punsafe": pa.array([0.0, 0.0], pa.float64()),
}
LAION_AESTHETIC = {
    "URL": URLS,
    "TEXT": TEXTS,
    "WIDTH": pa.array([1024, 640], pa.int64()),
    "HEIGHT": pa.array([768, 480], pa.int64()),
    "similarity": pa.array([0.3, 0.31], pa.float64()),
    "hash": pa.array([7, 8], pa.int64()),
    "punsafe": pa.array([0.0, 0.1], pa.float32()),
    "pwatermark": pa.array([0.0, 0.1], pa.float32()),
    "AESTHETIC_SCORE": pa.array([6.6, 7.1], pa.float32()),
}
COYO_700M = {
    "id": pa.array([841814333321, 2], pa.int64()),
    "url": URLS,
    "text": TEXTS,
    "width": pa.array([1200, 500], pa.int32()),
    "height": pa.array([800, 500], pa.int32()),
    "image_phash": ["bcb1e2ae8d5c3d00", "0000000000000000"],
    "text_length": pa.array([23, 14], pa.int32()),
    "word_count": pa.array([5, 2], pa.int32()),
    "num_tokens_bert": pa.array([6, 4], pa.int32()),
    "num_tokens_gpt": pa.array([6, 4], pa.int32()),
    "num_faces": pa.array([0, 2], pa.int32()),
    "clip_similarity_vitb32": pa.array([0.28, 0.3], pa.float64()),
    "clip_similarity_vitl14": pa.array([0.23, 0.25], pa.float64()),
    "nsfw_score_opennsfw2": pa.array([0.01, 0.4], pa.float32()),
    "nsfw_score_gantman": pa.array([0.02, 0.3], pa.float32()),
    "watermark_score": pa.array([0.05, 0.6], pa.float32()),
    "aesthetic_score_laion_v2": pa.array([5.1, 4.2], pa.float32()),
}
DATACOMP = {
    "uid": ["00002d5c8f8e4c0b9b6f5b2a", "0000ffff"],
    "url": URLS,
    "text": TEXTS,
    "original_width": pa.array([512, 1024], pa.int64()),
    "original_height": pa.array([384, 768], pa.int64()),
    "clip_b32_similarity_score": pa.array([0.21, 0.31], pa.float32()),
    "clip_l14_similarity_score": pa.array([0.19, 0.27], pa.float32()),
    "face_bboxes": pa.array([[[0.1, 0.1, 0.2, 0.2]], []], pa.list_(pa.list_(pa.float64()))),
    "sha256": ["0f" * 32, "ab" * 32],
}


def read(path: Path, columns: dict) -> list[dict]:
    pq.write_table(pa.table(columns), path)
    return pa.concat_tables(Laion(path).read(1)).to_pylist()


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            LAION_400M,
            {
                "declared_width": 300,
                "score.similarity": 0.33,
                "score.punsafe": None,
                "score.nsfw": 0.0,
            },
        ),
        (LAION_5B_ZH, {"declared_height": 225, "score.pwatermark": 0.1, "score.nsfw": 0.0}),
        (LAION_COCO, {"caption": "a lighthouse at dusk", "score.similarity": 0.35}),
        (LAION_AESTHETIC, {"score.aesthetic": 6.6}),
        (
            COYO_700M,
            {
                "declared_width": 1200,
                "score.similarity": 0.28,
                "score.similarity_l14": 0.23,
                "score.punsafe": 0.01,
                "score.gantman": 0.02,
                "score.pwatermark": 0.05,
                "score.aesthetic": 5.1,
                "score.faces": 0,
            },
        ),
        (
            DATACOMP,
            {"declared_height": 384, "score.similarity": 0.21, "score.similarity_l14": 0.19},
        ),
    ],
    ids=["400M", "5B-zh", "COCO", "aesthetic", "COYO", "DataComp"],
)
def test_published_columns_are_mapped(tmp_path: Path, columns: dict, expected: dict) -> None:
    first, second = read(tmp_path / "list.parquet", columns)
    assert first["url"] == URLS[0]
    assert set(CANDIDATES.names) <= set(first) == set(second)
    found = {name: first[name] for name in expected}
    assert found == {
        name: value if value is None or isinstance(value, str) else pytest.approx(value)
        for name, value in expected.items()
    }


def test_identifiers_go_into_lineage(tmp_path: Path) -> None:
    first, _ = read(tmp_path / "a.parquet", DATACOMP)
    assert json.loads(first["lineage"]) == {"uid": DATACOMP["uid"][0], "sha256": "0f" * 32}
    first, second = read(tmp_path / "b.parquet", LAION_5B_ZH)
    assert json.loads(first["lineage"])["language"] == "zh"
    assert second["declared_width"] is None


def test_face_boxes_are_read_on_request(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table(DATACOMP), path)
    (table,) = Laion(path, boxes="face_bboxes").read(10)
    assert table["boxes"].to_pylist() == [[[0.1, 0.1, 0.2, 0.2]], []]
    with pytest.raises(UserError, match=r"no column faces among .*; did you mean 'face_bboxes'\?"):
        Laion(path, boxes="faces")
    with pytest.raises(UserError, match="column text holds string, want lists of"):
        list(Laion(path, boxes="text").read(10))


def test_tags_become_numbers(tmp_path: Path) -> None:
    found = read(tmp_path / "a.parquet", {**LAION_400M, "NSFW": ["NSFW", "whatever"]})
    assert [row["score.nsfw"] for row in found] == [1.0, None]


def test_files_with_different_columns_make_one_list(tmp_path: Path) -> None:
    pq.write_table(pa.table(LAION_AESTHETIC), tmp_path / "0.parquet")
    pq.write_table(pa.table(LAION_400M), tmp_path / "1.parquet")
    (table,) = Laion(tmp_path).read(10)
    assert table["score.aesthetic"].is_null().to_pylist() == [False, False, True, True]
