"""Both download backends on the same hostile web: the same rows, and a reason for each case."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.storage.shards import ShardSet
from tests.cluster.etl_jobs import Drivers
from tests.etl.download.test_hostile import CASES
from tests.etl.download.web import BODIES, photo, served

pytestmark = pytest.mark.cluster

OTHERWISE = {
    "do_endless_redirects": "redirect_loop",
    "do_to_file": "http_302",
    "do_nonsense": None,
}
"""Cases of which img2dataset says something else; None is any reason."""


def test_rows_do_not_depend_on_the_backend(
    drivers: Drivers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        monkeypatch.setitem(BODIES, f"photo{number}", photo(400, 300, seed=number))
    names = [*CASES, *(f"photo{number}" for number in range(6))]
    words = ["--input", str(tmp_path / "list.parquet"), "--allow-private-addresses"]
    words += ["--timeout", "2", "--retries", "0", "--max-bytes", "200000", "--image-size", "150"]
    with served() as web:
        urls = [f"{web.base}/{name}" for name in names]
        texts = [f"a picture of {name}" for name in names]
        pq.write_table(pa.table({"URL": urls, "TEXT": texts}), tmp_path / "list.parquet")
        drops, kept = {}, {}
        for backend in ("native", "img2dataset"):
            output = tmp_path / backend
            told = drivers.run("laion", [*words, "--output", str(output), "--backend", backend])
            assert told["input_rows"] == told["rows"] + sum(told["drops"].values()) == len(names)
            table = pq.read_table(output / "drops.parquet")
            rows = zip(table["row"].to_pylist(), table["reason"].to_pylist(), strict=True)
            drops[backend] = {names[row]: reason for row, reason in rows}
            samples = ShardSet([output])
            kept[backend] = [samples[index].media for index in range(len(samples))]
    for name, reason in CASES.items():
        found = drops["native"].get(name)
        # Many names serve the same picture, of which the first is kept.
        assert found in (reason, "duplicate_medium") if reason is None else found == reason
        wanted = OTHERWISE.get(name, found)
        if wanted is not None or name not in OTHERWISE:
            assert drops["img2dataset"].get(name) == wanted, name
    assert len(kept["native"]) == 7
    assert kept["native"] == kept["img2dataset"]
    assert {media[0].width for media in kept["native"][1:]} == {200}
