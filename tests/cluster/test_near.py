"""Near duplicates planted among the digits world's pictures, in other shards and in a retry."""

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from etl.dedup.perceptual_hash import perceptual_hash
from etl.digits.records import pair
from etl.digits.scenes import render
from etl.storage.manifest import read_manifest
from tests.cluster.etl_jobs import Drivers
from tests.etl.download.web import Handler, Web, served

pytestmark = pytest.mark.cluster
DISTANCE = 4


def picture(number: int, quality: int) -> bytes:
    stream = io.BytesIO()
    render(pair(0, number).scene).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


class Pictures(Handler):
    """Serves `/KIND/QUALITY/NUMBER`; what is busy only when the server is well."""

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        kind, _, rest = self.path.strip("/").partition("/")
        quality, _, number = rest.partition("/")
        if not number.isdigit():
            self.answer(404)
        elif kind == "busy" and not self.server.well:
            self.answer(503, headers={"Retry-After": "900"})
        else:
            self.answer(200, body=picture(int(number), int(quality)))


@pytest.fixture
def web() -> Iterator[Web]:
    with served() as server:
        server.RequestHandlerClass = Pictures
        server.well = False
        yield server


def stays(rows: list[int], given: list[tuple[int, int]], kept: list[int]) -> list[int]:
    """Of rows those that are like none that stays, one after the other."""
    hashes = {row: hashed(*given[row]) for row in (*rows, *kept)}
    kept = list(kept)
    for row in rows:
        if all((hashes[row] ^ hashes[other]).bit_count() > DISTANCE for other in kept):
            kept.append(row)
    return kept


def hashed(number: int, quality: int) -> int:
    with Image.open(io.BytesIO(picture(number, quality))) as found:
        found.draft("L", (64, 64))
        return perceptual_hash(found)


def test_the_earliest_of_near_pictures_stays(drivers: Drivers, web: Web, tmp_path: Path) -> None:
    # Rows 0 to 29 are pictures of their own, 30 to 49 such in a poorer quality; every fifth is
    # not to be had at first.
    given = [(row, 92) for row in range(30)] + [(row, 60) for row in range(20)]
    kinds = ["busy" if row % 5 == 2 else "fine" for row in range(50)]
    urls = [
        f"{web.base}/{kind}/{quality}/{number}"
        for kind, (number, quality) in zip(kinds, given, strict=True)
    ]
    captions = [f"a picture in row {row}" for row in range(50)]
    listing = tmp_path / "list.parquet"
    pq.write_table(pa.table({"URL": urls, "TEXT": captions}), listing)
    output = tmp_path / "shards"
    words = ["--input", str(listing), "--output", str(output), "--allow-private-addresses"]
    words += ["--rows-per-shard", "16", "--image-dedup-distance", str(DISTANCE)]
    busy = [row for row in range(50) if kinds[row] == "busy"]
    fine = [row for row in range(50) if kinds[row] == "fine"]

    first = drivers.run("laion", words)
    kept = stays(fine, given, [])
    gone = len(fine) - len(kept)
    assert gone >= 14  # the planted ones whose original was there, at the least
    assert first["drops"] == {"http_503": len(busy), "near_duplicate_image": gone}
    assert pq.read_table(output / "keys.parquet")["row"].to_pylist() == kept

    web.well = True
    again = drivers.run("laion", [*words, "--retry-failed"])
    everything = stays(busy, given, kept)
    assert again["drops"] == {"near_duplicate_image": 50 - len(everything)}
    assert sorted(pq.read_table(output / "keys.parquet")["row"].to_pylist()) == sorted(everything)
    drops = pq.read_table(output / "drops.parquet")
    assert drops["row"].to_pylist() == sorted({*range(50)} - {*everything})
    assert Counter(drops["step"].to_pylist()) == {"image dedup": drops.num_rows}
    for detail in drops["detail"].to_pylist():
        assert int(detail.rpartition(" ")[2]) in everything
    assert read_manifest(output).rows == len(everything)
