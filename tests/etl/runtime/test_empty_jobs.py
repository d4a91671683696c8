"""Jobs that keep no row: finished, with their reasons and a hint at the likely option."""

import json
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import etl.audio
import etl.cc
import etl.instruct
import etl.interleaved
import etl.laion
import etl.pointcloud
import etl.preference
import etl.refilter
import etl.webvid
from etl.cli import main
from etl.report.hints import hint_for
from etl.storage.manifest import Manifest, Shard, read_manifest
from tests.worlds import caption_shards

FORMATS = Path(__file__).parents[1] / "formats"
PRIVATE = "http://10.1.2.3"


def laion_list(folder: Path) -> Path:
    """Dissimilar pairs on a public host."""
    urls = [f"http://example.com/{number}.jpg" for number in range(3)]
    table = pa.table({"URL": urls, "TEXT": ["a caption"] * 3, "similarity": [0.1, 0.2, 0.25]})
    pq.write_table(table, folder / "list.parquet")
    return folder / "list.parquet"


def private_laion_list(folder: Path) -> Path:
    table = pa.table({"URL": [f"{PRIVATE}/1.jpg"], "TEXT": ["a caption"]})
    pq.write_table(table, folder / "list.parquet")
    return folder / "list.parquet"


def private_pairs(folder: Path) -> Path:
    (folder / "list.tsv").write_text(f"{PRIVATE}/1.jpg\ta caption\n{PRIVATE}/2.jpg\tanother one\n")
    return folder / "list.tsv"


def private_videos(folder: Path) -> Path:
    lines = ["videoid,contentUrl,duration,page_dir,name", f"1,{PRIVATE}/1.mp4,,x,a caption"]
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv"


def dissimilar_document(folder: Path) -> Path:
    image = {"raw_url": "http://example.com/1.jpg", "matched_text_index": 0, "matched_sim": 0.1}
    document = {"url": "http://example.com", "text_list": ["One."], "image_info": [image]}
    (folder / "docs.jsonl").write_text(json.dumps(document) + "\n")
    return folder / "docs.jsonl"


def sample_file(name: str):
    return lambda folder: FORMATS / name


CASES = [
    (etl.laion, laion_list, [], ("similarity_too_low", "--min-similarity")),
    (etl.laion, private_laion_list, [], ("private_address", "--allow-private-addresses")),
    (etl.cc, private_pairs, [], ("private_address", "--allow-private-addresses")),
    (etl.webvid, private_videos, [], ("private_address", "--allow-private-addresses")),
    (etl.interleaved, dissimilar_document, [], ("too_few_media", "--min-similarity")),
    (etl.audio, sample_file("clotho.csv"), [], ("no_media", "--media")),
    (etl.pointcloud, sample_file("cap3d.csv"), [], ("no_media", "--media")),
    (etl.instruct, sample_file("gqa.json"), ["--format", "gqa"], ("no_media", "--media")),
    (etl.preference, sample_file("vlguard.json"), ["--format", "vlguard"], ("no_media", "--media")),
]


@pytest.mark.parametrize(("job", "listing", "args", "expected"), CASES)
def test_a_job_that_keeps_no_row_is_finished_and_hints_at_an_option(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    job: ModuleType,
    listing,
    args: list[str],
    expected: tuple[str, str],
) -> None:
    reason, option = expected
    output = tmp_path / "out"
    words = ["--input", str(listing(tmp_path)), "--output", str(output), *args]
    # Every global filter is selected: none may fail for want of rows.
    words += ["--image-dedup-distance", "4", "--text-dedup-similarity", "0.9"]
    monkeypatch.setattr("sys.argv", ["job", *words])
    for _ in range(2):  # the second run finds a complete output
        with pytest.raises(SystemExit) as stop:
            main(job.run)
        assert stop.value.code == 0
        (hint,) = [line for line in capsys.readouterr().out.splitlines() if "hint:" in line]
        assert reason in hint
        assert option in hint
    manifest = read_manifest(output)
    assert (manifest.rows, manifest.shards) == (0, ())
    assert manifest.input_rows == sum(manifest.drops.values()) > 0
    assert max(manifest.drops, key=lambda name: manifest.drops[name]) == reason
    assert pq.read_table(output / "drops.parquet").num_rows == manifest.input_rows
    page = (output / "report.html").read_text()
    assert "No row was kept" in page
    assert option in page
    assert not (output / ".work").exists()
    job.run([*words, "--json"])
    assert option in json.loads(capsys.readouterr().out)["hint"]


def test_a_list_without_rows_is_a_finished_job(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("videoid,contentUrl,duration,page_dir,name\n")
    output = tmp_path / "out"
    etl.webvid.run(["--input", str(tmp_path / "list.csv"), "--output", str(output)])
    manifest = read_manifest(output)
    assert (manifest.input_rows, manifest.rows, manifest.drops) == (0, 0, {})
    assert pq.read_table(output / "drops.parquet").num_rows == 0


def test_a_policy_that_keeps_no_row_hints_at_its_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = caption_shards(tmp_path / "shards", 3)
    args = ["--input", str(shards), "--output", str(tmp_path / "out"), "--min-side", "1000"]
    etl.refilter.run(args)
    assert "lower --min-side" in capsys.readouterr().out


def manifest_of(job: str, rows: int = 0, **drops: int) -> Manifest:
    shards = (Shard(path="a", rows=rows, bytes=1, sha256=""),) if rows else ()
    total = rows + sum(drops.values())
    options = ("min_clip", "minimum", "maximum")
    plan = {"config": dict.fromkeys(options)}
    return Manifest(job=job, plan=plan, input_rows=total, rows=rows, drops=drops, shards=shards)


@pytest.mark.parametrize(
    ("job", "drops", "hint"),
    [
        ("laion", {"clip_too_low": 2}, "lower --min-clip"),
        ("laion", {"aesthetic_too_low": 2}, "lower --minimum aesthetic=…"),
        ("refilter", {"clip_too_low": 2}, "lower --minimum clip=…"),
        ("refilter", {"punsafe_too_high": 2}, "raise --maximum punsafe=…"),
        ("laion", {"punsafe_too_high": 1, "timeout": 2}, "--retry-failed and a larger --timeout"),
        ("instruct", {"too_short": 2}, "see the examples in report.html"),  # has no --min-seconds
        ("cc", {"something_new": 2}, "see the examples in report.html"),
    ],
)
def test_the_hint_names_the_option_of_the_main_reason(job: str, drops: dict, hint: str) -> None:
    assert hint in hint_for(manifest_of(job, **drops))


def test_a_job_that_keeps_rows_or_had_none_has_no_hint() -> None:
    assert hint_for(manifest_of("laion", rows=1, timeout=5)) is None
    assert hint_for(manifest_of("laion")) is None
