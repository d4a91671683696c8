"""The ETL on a real Ray, downloading from a real web server with planted faults."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from etl.runtime.job_state import JobState, read_table
from etl.storage.manifest import read_manifest
from etl.storage.shards import ShardSet
from tests.cluster.ray_cluster import (
    BIN,
    ROOT,
    DigitsWeb,
    RayHead,
    digits_web,
    marked,
    ray_head,
)

__all__ = ["digits_web", "ray_head"]
pytestmark = pytest.mark.cluster


def laion(web: DigitsWeb, output: Path) -> list[str]:
    """The job's words after `python`, relative to the repository."""
    return [
        "etl/laion.py",
        *("--input", str(web.folder / "laion.parquet"), "--output", str(output)),
        *("--allow-private-addresses", "--rows-per-shard", "32"),
    ]


def run(command: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def uninterrupted(digits_web: DigitsWeb, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of `python etl/laion.py` on a Ray of its own."""
    output = tmp_path_factory.mktemp("local") / "shards"
    done = run([sys.executable, *laion(digits_web, output)])
    assert done.returncode == 0, done.stderr
    return output


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.arrow")}


def test_drops_are_what_was_planted(digits_web: DigitsWeb, uninterrupted: Path) -> None:
    manifest = read_manifest(uninterrupted)
    planted = digits_web.planted
    wanted = {fault["reason"]: fault["count"] for fault in planted["planted"].values()}
    assert manifest.drops == wanted
    assert (manifest.input_rows, manifest.rows) == (planted["rows"], planted["valid"])
    drops = pq.read_table(uninterrupted / "drops.parquet")
    assert Counter(drops["reason"].to_pylist()) == wanted
    for kind in ("dead_link", "truncated", "html_page", "short_caption"):
        fault = planted["planted"][kind]
        found = drops.filter([reason == fault["reason"] for reason in drops["reason"].to_pylist()])
        assert found["row"].to_pylist() == fault["rows"]


def test_kept_rows_are_the_input_in_order(digits_web: DigitsWeb, uninterrupted: Path) -> None:
    listed = pq.read_table(digits_web.folder / "laion.parquet").to_pylist()
    samples = ShardSet([uninterrupted])
    rows = [int(samples[index].lineage["row"]) for index in range(len(samples))]
    assert rows == sorted(set(rows))
    for index, row in enumerate(rows):
        assert samples[index].turns[1].text == listed[row]["TEXT"]
        assert samples[index].lineage["url"] == listed[row]["URL"]
        served = digits_web.folder / "media" / "/".join(listed[row]["URL"].split("/")[3:])
        assert samples[index].media[0].data == served.read_bytes()


def test_a_submitted_job_writes_the_same_bytes(
    ray_head: RayHead, digits_web: DigitsWeb, uninterrupted: Path, tmp_path: Path
) -> None:
    output = tmp_path / "shards"
    submit = [str(BIN / "ray"), "job", "submit", "--address", ray_head.dashboard, "--"]
    done = run([*submit, "python", *laion(digits_web, output)], ray_head.env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr
    assert shards(output) == shards(uninterrupted)
    assert read_manifest(output) == read_manifest(uninterrupted)


def test_a_killed_job_goes_on(digits_web: DigitsWeb, uninterrupted: Path, tmp_path: Path) -> None:
    output = tmp_path / "shards"
    state = JobState(output)
    with marked(dict(os.environ)) as env:
        command = [sys.executable, *laion(digits_web, output)]
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
        while not (done := [n for n in range(8) if state.unit_result(n)]):
            assert process.poll() is None
            time.sleep(0.02)  # a file's appearance is no event that could be awaited
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (output / "manifest.json").exists()
    # What a done range holds is gone from the web: it must not be asked for again.
    url = read_table(state.keys_path(done[0]))["url"][0].as_py()
    served = digits_web.folder / "media" / "/".join(url.split("/")[3:])
    hidden = served.rename(served.with_suffix(".hidden"))
    try:
        again = run([sys.executable, *laion(digits_web, output)])
    finally:
        hidden.rename(served)
    assert again.returncode == 0, again.stderr
    assert shards(output) == shards(uninterrupted)
    assert read_manifest(output) == read_manifest(uninterrupted)
    assert not state.work.exists()


def test_a_cluster_named_by_the_environment_is_used(
    ray_head: RayHead, digits_web: DigitsWeb, tmp_path: Path
) -> None:
    listing = digits_web.folder / "dialogues.json"
    output = tmp_path / "shards"
    words = ["--input", str(listing), "--output", str(output), "--allow-private-addresses"]
    env = {**ray_head.env, "RAY_ADDRESS": ray_head.address}
    done = run([sys.executable, "etl/instruct.py", *words, "--json"], env)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["input_rows"], told["rows"], told["drops"]) == (40, 40, {})
    samples = ShardSet([output])
    for index, record in enumerate(json.loads(listing.read_bytes())):
        texts = [turn["value"] for turn in record["conversations"]]
        assert [turn.text for turn in samples[index].turns] == texts
        assert samples[index].media[0].mime == "image/png"
