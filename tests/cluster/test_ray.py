"""The ETL on a real Ray, downloading from a real web server with planted faults."""

import json
import subprocess
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from etl.runtime.job_state import JobState, read_table
from etl.storage.manifest import read_manifest
from etl.storage.shards import ShardSet
from tests.cluster.etl_jobs import Drivers, laion_words
from tests.cluster.ray_cluster import BIN, ROOT, DigitsWeb, RayHead

pytestmark = pytest.mark.cluster


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.arrow")}


def test_drops_are_what_was_planted(digits_web: DigitsWeb, laion_shards: Path) -> None:
    manifest = read_manifest(laion_shards)
    planted = digits_web.planted
    wanted = {fault["reason"]: fault["count"] for fault in planted["planted"].values()}
    assert manifest.drops == wanted
    assert (manifest.input_rows, manifest.rows) == (planted["rows"], planted["valid"])
    drops = pq.read_table(laion_shards / "drops.parquet")
    assert Counter(drops["reason"].to_pylist()) == wanted
    for kind in ("dead_link", "truncated", "html_page", "short_caption"):
        fault = planted["planted"][kind]
        found = drops.filter([reason == fault["reason"] for reason in drops["reason"].to_pylist()])
        assert found["row"].to_pylist() == fault["rows"]


def test_kept_rows_are_the_input_in_order(digits_web: DigitsWeb, laion_shards: Path) -> None:
    listed = pq.read_table(digits_web.folder / "laion.parquet").to_pylist()
    samples = ShardSet([laion_shards])
    rows = [int(samples[index].lineage["row"]) for index in range(len(samples))]
    assert rows == sorted(set(rows))
    for index, row in enumerate(rows):
        assert samples[index].turns[1].text == listed[row]["TEXT"]
        assert samples[index].lineage["url"] == listed[row]["URL"]
        served = digits_web.folder / "media" / "/".join(listed[row]["URL"].split("/")[3:])
        assert samples[index].media[0].data == served.read_bytes()


def test_a_submitted_job_writes_the_same_bytes(
    ray_head: RayHead, digits_web: DigitsWeb, laion_shards: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    submit = [str(BIN / "ray"), "job", "submit", "--address", ray_head.dashboard, "--"]
    command = [*submit, "python", "etl/laion.py", *laion_words(digits_web, output)]
    done = subprocess.run(
        command, cwd=ROOT, env=ray_head.env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr
    assert shards(output) == shards(laion_shards)
    assert read_manifest(output) == read_manifest(laion_shards)


def test_a_killed_job_goes_on(
    drivers: Drivers, digits_web: DigitsWeb, laion_shards: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    state = JobState(output)

    def done() -> list[int]:
        return [number for number in range(8) if state.unit_result(number)]

    drivers.start("laion", laion_words(digits_web, output)).kill_when(done)
    assert not (output / "manifest.json").exists()
    # What a done range holds is gone from the web: it must not be asked for again.
    url = read_table(state.keys_path(done()[0]))["url"][0].as_py()
    served = digits_web.folder / "media" / "/".join(url.split("/")[3:])
    hidden = served.rename(served.with_suffix(".hidden"))
    try:
        drivers.run("laion", laion_words(digits_web, output))
    finally:
        hidden.rename(served)
    assert shards(output) == shards(laion_shards)
    assert read_manifest(output) == read_manifest(laion_shards)
    assert not state.work.exists()


def test_a_cluster_named_by_the_environment_is_used(
    ray_head: RayHead, drivers: Drivers, digits_web: DigitsWeb, tmp_path: Path
) -> None:
    listing = digits_web.folder / "dialogues.json"
    output = tmp_path / "shards"
    words = ["--input", listing, "--output", output, "--allow-private-addresses"]
    before = len(ray_head.ask("jobs/"))
    told = drivers.run("instruct", words)
    assert len(ray_head.ask("jobs/")) == before + 1
    assert (told["input_rows"], told["rows"], told["drops"]) == (40, 40, {})
    samples = ShardSet([output])
    for index, record in enumerate(json.loads(listing.read_bytes())):
        texts = [turn["value"] for turn in record["conversations"]]
        assert [turn.text for turn in samples[index].turns] == texts
        assert samples[index].media[0].mime == "image/png"
