"""Statistics of a job's output, and the report that shows them."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.filters.base import DROPS
from etl.report.job_report import DROPS_FILE, TIMINGS_FILE, write_report
from etl.report.statistics import download_yield, spread, statistics
from etl.storage.atomic import write_json
from etl.storage.manifest import Manifest, read_manifest
from tests.worlds import caption_shards

NASTY = "<script>alert(1)</script>"


def drop(row: int, host: str, reason: str, step: str = "download") -> dict:
    url = f"http://{host}/{row}"
    return {"row": row, "id": str(row), "url": url, "step": step, "reason": reason, "detail": NASTY}


@pytest.fixture
def output(tmp_path: Path) -> tuple[Path, Manifest, pa.Table]:
    folder = caption_shards(tmp_path / "shards", 8)
    rows = [
        drop(8, "b", "timeout"),
        *(drop(row, "a", "http_404") for row in (9, 10)),
        drop(11, "a", "timeout"),
        drop(12, "c", "truncated", "decode"),
    ]
    drops = pa.Table.from_pylist(rows, schema=DROPS)
    pq.write_table(drops, folder / DROPS_FILE)
    yields = [{"step": "download", "rows_in": 13, "rows_out": 9}]
    manifest = dataclasses.replace(
        read_manifest(folder),
        input_rows=13,
        drops={"timeout": 2, "http_404": 2, "truncated": 1},
        details={"yields": yields},
    )
    return folder, manifest, drops


def test_statistics_of_rows_and_hosts(output: tuple[Path, Manifest, pa.Table]) -> None:
    folder, manifest, drops = output
    found = statistics(folder, manifest.shards, drops)
    assert found["sampled_rows"] == 8
    assert {"width", "height", "kilobytes", "characters of answers"} <= found["histograms"].keys()
    assert "duration" not in found["histograms"]  # images have none
    for one in found["histograms"].values():
        assert sum(one["counts"]) == 8
        assert len(one["edges"]) == len(one["counts"]) + 1
    assert found["failing_hosts"] == [["a", 3, "http_404"], ["b", 1, "timeout"]]
    assert download_yield(manifest) == pytest.approx(9 / 13)
    assert statistics(folder, manifest.shards, drops) == found


def test_shards_are_evenly_spaced(output: tuple[Path, Manifest, pa.Table]) -> None:
    one = output[1].shards[0]
    many = [dataclasses.replace(one, path=str(number)) for number in range(100)]
    assert [shard.path for shard in spread(many, 4)] == ["0", "25", "50", "75"]
    assert spread(many, 1000) == many


def test_the_page_shows_the_numbers_and_is_safe(output: tuple[Path, Manifest, pa.Table]) -> None:
    folder, manifest, drops = output
    details = {**manifest.details, "statistics": statistics(folder, manifest.shards, drops)}
    write_json(folder / TIMINGS_FILE, {"download": {"seconds": 2.0, "rows": 13}})
    write_report(folder, dataclasses.replace(manifest, details=details))
    page = (folder / "report.html").read_text()
    for text in ("69.2%", "Hosts with most failures", "3 · http_404", "6.5", "http://a/9"):
        assert text in page
    assert NASTY not in page
    assert "<script" not in page
