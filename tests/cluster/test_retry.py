"""A job over a web that fails for a while, and `--retry-failed` when it does so no longer."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.storage.manifest import read_manifest
from etl.storage.shards import ShardSet
from tests.cluster.etl_jobs import Drivers
from tests.etl.download.web import Handler, Web, photo, served

pytestmark = pytest.mark.cluster


class Flaky(Handler):
    """Serves numbered pictures; every third one only when the server is well."""

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        kind, _, number = self.path.strip("/").partition("/")
        if kind == "gone" or not number.isdigit():
            self.answer(404)
        elif kind == "busy" and not self.server.well:
            self.answer(503, headers={"Retry-After": "900"})
        else:
            self.answer(200, body=photo(seed=int(number)))


@pytest.fixture
def web() -> Iterator[Web]:
    with served() as server:
        server.RequestHandlerClass = Flaky
        server.well = False
        yield server


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.arrow")}


def test_transient_failures_are_recovered_into_added_shards(
    drivers: Drivers, web: Web, tmp_path: Path
) -> None:
    kinds = ["fine", "busy", "gone"] * 10
    urls = [f"{web.base}/{kind}/{number}" for number, kind in enumerate(kinds)]
    # The same picture as a row that is kept already: recovered, it is a duplicate.
    urls[28] = f"{web.base}/busy/0"
    listing = tmp_path / "list.parquet"
    table = {"URL": urls, "TEXT": [f"a picture, number {number}" for number in range(30)]}
    pq.write_table(pa.table(table), listing)
    output = tmp_path / "shards"
    words = ["--input", str(listing), "--output", str(output), "--allow-private-addresses"]
    words += ["--rows-per-shard", "16", "--backend", "native"]
    first = drivers.run("laion", words)
    assert (first["rows"], first["drops"]) == (10, {"http_503": 10, "http_404": 10})
    before = shards(output)
    web.well = True
    again = drivers.run("laion", [*words, "--retry-failed"])
    assert (again["rows"], again["drops"]) == (19, {"http_404": 10, "duplicate_medium": 1})
    assert again["input_rows"] == again["rows"] + sum(again["drops"].values())
    after = shards(output)
    assert {name: after[name] for name in before} == before
    assert sorted(set(after) - set(before)) == ["shard-00002.arrow"]
    samples = ShardSet([output])
    rows = [int(samples[index].lineage["row"]) for index in range(len(samples))]
    assert sorted(rows) == [n for n, kind in enumerate(kinds) if kind != "gone" and n != 28]
    drops = pq.read_table(output / "drops.parquet")
    assert drops["row"].to_pylist() == sorted([*range(2, 30, 3), 28])
    manifest = read_manifest(output)
    assert manifest.details["retries"] == [{"retried": 10, "recovered": 9}]
    assert not (output / ".work").exists()
    # Nothing is left that might pass.
    assert drivers.run("laion", [*words, "--retry-failed"]) == again
    assert read_manifest(output) == manifest
