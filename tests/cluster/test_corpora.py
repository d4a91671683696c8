"""The jobs of videos, sounds, clouds, documents and archives, on a real Ray and a real server."""

import json
import zipfile
from pathlib import Path

import pytest

from etl.digits.records import pair
from etl.digits.scenes import encode, render
from etl.storage.manifest import Manifest, read_manifest
from etl.storage.schema import Sample
from etl.storage.shards import ShardSet
from tests.cluster.etl_jobs import Drivers
from tests.cluster.ray_cluster import DigitsWeb

pytestmark = pytest.mark.cluster


def job(
    drivers: Drivers, name: str, listing: Path, output: Path, *words: str
) -> tuple[Manifest, list[Sample]]:
    files = ("--input", listing, "--output", output)
    drivers.run(name, [*files, "--allow-private-addresses", *words])
    manifest = read_manifest(output)
    samples = ShardSet([output])
    return manifest, [samples[index] for index in range(len(samples))]


@pytest.mark.parametrize(
    ("name", "listing"),
    [
        ("webvid", "webvid.csv"),
        ("audio", "wavcaps.json"),
        ("pointcloud", "triplets.jsonl"),
        ("interleaved", "mmc4.jsonl"),
    ],
)
def test_drops_are_what_was_planted(
    drivers: Drivers, digits_web: DigitsWeb, tmp_path: Path, name: str, listing: str
) -> None:
    truth = json.loads((digits_web.folder / "planted_media.json").read_bytes())[listing]
    manifest, samples = job(drivers, name, digits_web.folder / listing, tmp_path / "out")
    assert (manifest.input_rows, len(samples)) == (truth["rows"], truth["valid"])
    assert manifest.drops == truth["drops"]
    for sample in samples:
        for medium in sample.media:
            facts = (medium.width, medium.height, medium.frames, medium.duration)
            rate, points = medium.sample_rate, medium.points
            match medium.kind:
                case "video":
                    assert facts[:3] == (96, 96, 5)
                    assert 1 <= facts[3] <= 2
                case "audio":
                    assert rate == 8000
                    assert 0.2 < facts[3] < 2
                case "points":
                    assert points == 1024
                case "image":
                    assert facts[:2] == (96, 96)
    if name == "interleaved":  # the last document with a picture has lost one, and tells so
        *whole, part = samples
        assert [len(sample.media) for sample in samples] == [3] * len(whole) + [2]
        assert part.turns[0].text.count("<image>") == 2
        (lost,) = json.loads(part.lineage["lost_media"])
        assert lost.endswith("-1.png http_404")


def test_archives_and_shared_pictures(drivers: Drivers, tmp_path: Path) -> None:
    picture = encode(render(pair(0, 0).scene), "image/jpeg")
    with zipfile.ZipFile(tmp_path / "train2014.zip", "w") as archive:
        archive.writestr("train2014/a.jpg", picture)
        archive.writestr("train2014/b.jpg", b"no picture")
    images = [{"id": number, "file_name": f"{name}.jpg"} for number, name in enumerate("abc")]
    captions = [{"image_id": n % 3, "id": n, "caption": f"caption {n}"} for n in range(6)]
    listing = tmp_path / "captions.json"
    listing.write_text(json.dumps({"images": images, "annotations": captions}))
    words = ("--media", str(tmp_path / "train2014.zip"))
    manifest, samples = job(drivers, "coco", listing, tmp_path / "out", *words)
    assert manifest.drops == {"wrong_type": 2, "not_in_media": 2}
    assert [sample.turns[1].text for sample in samples] == ["caption 0", "caption 3"]
    assert {sample.media[0].data for sample in samples} == {picture}
    assert samples[0].lineage["file"] == "a.jpg"


def test_dialogues_without_a_picture_are_text(drivers: Drivers, tmp_path: Path) -> None:
    said = [{"from": "human", "value": "Name a prime."}, {"from": "gpt", "value": "7"}]
    listing = tmp_path / "list.json"
    listing.write_text(json.dumps([{"id": "text", "conversations": said}]))
    manifest, (sample,) = job(drivers, "instruct", listing, tmp_path / "out")
    assert manifest.drops == {}
    assert (sample.media, [turn.text for turn in sample.turns]) == ((), ["Name a prime.", "7"])


def test_a_job_whose_downloads_all_fail_is_finished(drivers: Drivers, tmp_path: Path) -> None:
    listing, output = tmp_path / "list.tsv", tmp_path / "out"
    listing.write_text("".join(f"http://127.0.0.1:1/{n}.jpg\tcaption {n}\n" for n in range(3)))
    words = ["--input", listing, "--output", output, "--allow-private-addresses", "--retries", "0"]
    words += ["--image-dedup-distance", "4", "--text-dedup-similarity", "0.9"]
    for _ in range(2):
        done = drivers.start("cc", words)
        done.finish()
        assert "hint: no row was kept; 3 of 3 were dropped as unreachable" in done.stdout
    manifest = read_manifest(output)
    assert (manifest.input_rows, manifest.rows, manifest.drops) == (3, 0, {"unreachable": 3})
    assert "No row was kept" in (output / "report.html").read_text()
    drivers.start("cc", [*words, "--retry-failed"]).finish()  # nothing is recovered
    assert read_manifest(output).details["retries"] == [{"retried": 3, "recovered": 0}]
