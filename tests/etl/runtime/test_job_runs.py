"""The jobs' commands up to the point where Ray would start: options, plans, errors."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import etl.audio
import etl.cc
import etl.coco
import etl.instruct
import etl.interleaved
import etl.laion
import etl.pointcloud
import etl.preference
import etl.webvid
from etl.cli import UserError
from etl.report.job_report import drops_chart, print_summary, write_report
from etl.runtime.job_state import CODE_VERSION, JobState, Plan, make_plan
from etl.runtime.options import JobOptions
from etl.storage.atomic import write_json
from etl.storage.manifest import Manifest, read_manifest, write_manifest
from etl.storage.shards import write_folder
from tests.worlds import caption_shards

ROOT = Path(__file__).parents[3]


@pytest.fixture
def listing(tmp_path: Path) -> Path:
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"URL": ["http://example.com/1"], "TEXT": ["a caption"]}), path)
    return path


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--input", "nowhere.parquet"], "nowhere.parquet: no such file"),
        (["--threads", "0"], "--threads 0: want 1 or more"),
        (["--max-aspect", "0.5"], "--max-aspect 0.5: want 1 or more"),
        (["--min-caption", "9", "--max-caption", "8"], "--min-caption 9: want at most"),
        (["--backend", "curl"], "--backend"),
        (["--min-captoin", "5"], "--min-caption"),
        (["--min-words", "3", "--max-words", "2"], "--min-words 3: want at most --max-words 2"),
        (["--languages", "en", "german"], "--languages german: want codes of ISO 639"),
        (["--minimum", "aestetic=5"], "no score 'aestetic' among .*; did you mean 'aesthetic'?"),
    ],
)
def test_bad_options_are_reported(
    listing: Path, tmp_path: Path, args: list[str], message: str
) -> None:
    output = tmp_path / "out"
    with pytest.raises(UserError, match=message) as caught:
        etl.laion.run(["--input", str(listing), "--output", str(output), *args])
    assert "\n" not in str(caught.value)
    assert not output.exists()


FORMATS = Path(__file__).parents[1] / "formats"


@pytest.mark.parametrize(
    ("job", "args", "message"),
    [
        (etl.cc, ["--input", "vlguard.json", "--format", "cc12"], "--format"),
        (etl.cc, ["--input", "nowhere"], "no such file or folder"),
        (etl.coco, ["--input", "coco.json"], "--media: want the folder or archive"),
        (etl.coco, ["--input", "coco.json", "--media", "nowhere"], "--media nowhere: no such file"),
        (
            etl.coco,
            ["--input", "coco.json", "--media", "http://a/", "b"],
            "--media http://a/: want one address, or folders and archives",
        ),
        (etl.webvid, ["--input", "webvid.csv", "--frames", "-1"], "--frames -1: want 0 or more"),
        (etl.webvid, ["--input", "clotho.csv"], "no column contentUrl among file_name"),
        (etl.audio, ["--input", "clotho.csv", "--max-seconds", "0"], "--max-seconds 0"),
        (etl.pointcloud, ["--input", "cap3d.csv", "--max-points", "9"], "--max-points 9"),
        (
            etl.interleaved,
            ["--input", "llava.json"],
            r"llava.json: unknown format: .* fields conversations",
        ),
        (etl.preference, ["--input", "sbu.json"], "want a list of objects"),
        (etl.instruct, ["--input", "gqa.json", "--format", "dvqa"], "want a list of records"),
    ],
)
def test_bad_options_of_other_jobs_are_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job, args: list[str], message: str
) -> None:
    monkeypatch.chdir(FORMATS)
    output = tmp_path / "out"
    with pytest.raises(UserError, match=message) as caught:
        job.run([*args, "--output", str(output)])
    assert "\n" not in str(caught.value)
    assert not output.exists()


def test_local_media_are_identified_by_content(tmp_path: Path) -> None:
    configs = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "a.jpg").write_bytes(b"a")
        options = {"input": tmp_path, "output": tmp_path, "media": (str(folder),)}
        configs.append(etl.coco.Options(**options).config)
    assert configs[0] == configs[1]
    (tmp_path / "two" / "b.jpg").write_bytes(b"b")
    assert etl.coco.Options(**options).config["media"] != configs[0]["media"]


def test_a_users_mistake_gets_one_line_and_exit_code_2(tmp_path: Path) -> None:
    args = ["--input", str(tmp_path / "no.json"), "--output", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "etl/instruct.py", *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: --input {tmp_path / 'no.json'}: no such file or folder\n"


def test_an_unreadable_list_leaves_no_output(tmp_path: Path) -> None:
    listing = tmp_path / "list.json"
    listing.write_text(json.dumps([{"conversations": [{"from": "nobody", "value": "x"}]}]))
    output = tmp_path / "out"
    with pytest.raises(UserError, match="record 0: want turns of"):
        etl.instruct.run(["--input", str(listing), "--output", str(output)])
    assert not output.exists()


def options_for(listing: Path, output: Path, **changes: object) -> JobOptions:
    return etl.laion.Options(input=listing, output=output, **changes)


def test_a_complete_output_is_left_alone(
    listing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    caption_shards(output, 3)
    options = options_for(listing, output)
    plan = make_plan("laion", [listing], options.config)
    manifest = read_manifest(output)
    details = {"yields": []}
    write_manifest(
        output,
        Manifest(
            job="laion",
            plan=vars(plan),
            input_rows=3,
            rows=3,
            drops={},
            shards=manifest.shards,
            details=details,
        ),
    )
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    etl.laion.run(["--input", str(listing), "--output", str(output), "--json"])
    assert json.loads(capsys.readouterr().out)["rows"] == 3
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before
    with pytest.raises(UserError, match=r"belongs to another job .*min_caption 5 there, 6 here"):
        etl.laion.run(["--input", str(listing), "--output", str(output), "--min-caption", "6"])


def reread(plan: Plan) -> dict:
    """Return a plan as it is read back from a manifest."""
    return json.loads(json.dumps(dataclasses.asdict(plan)))


def test_plans_depend_on_content_not_on_paths(listing: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.parquet"
    moved.write_bytes(listing.read_bytes())
    plan = make_plan("laion", [listing], options_for(listing, tmp_path).config)
    other = make_plan("laion", [moved], options_for(moved, tmp_path / "x", threads=3).config)
    assert plan.differences(reread(other)) == []
    moved.write_bytes(b"other bytes")
    other = make_plan("instruct", [moved], options_for(moved, tmp_path, min_side=9).config)
    assert [found.split()[0] for found in plan.differences(reread(other))] == [
        "input",
        "job",
        "min_side",
    ]
    newer = {**reread(plan), "code_version": CODE_VERSION + 1}
    assert plan.differences(newer) == [
        f"code_version {CODE_VERSION + 1} there, {CODE_VERSION} here"
    ]


def test_a_plan_is_the_same_after_it_was_saved(listing: Path, tmp_path: Path) -> None:
    options = [
        options_for(listing, tmp_path, languages=("en",), minimum=("aesthetic=5",)),
        etl.cc.Options(input=listing, output=tmp_path),
    ]
    for one in options:
        plan = make_plan("job", [listing], one.config)
        assert plan.differences(reread(plan)) == []


def test_another_jobs_unfinished_work_is_refused(listing: Path, tmp_path: Path) -> None:
    state = JobState(tmp_path / "out")
    plan = make_plan("laion", [listing], options_for(listing, state.output).config)
    with state.lock():
        state.save_plan(plan, unit_rows=[1], input_rows=1, yields=[])
        assert state.is_complete(plan) is False
        other = make_plan("instruct", [listing], plan.config)
        assert state.is_complete(other) is False  # nothing is done yet, so nothing would be lost
        state.unit_folder(0).mkdir()
        with pytest.raises(UserError, match="job 'laion' there, 'instruct' here"):
            state.is_complete(other)


def test_work_of_another_version_is_refused(listing: Path, tmp_path: Path) -> None:
    plan = make_plan("laion", [listing], options_for(listing, tmp_path).config)
    for version, age in ((CODE_VERSION - 1, "an older"), (CODE_VERSION + 1, "a newer")):
        state = JobState(tmp_path / str(version))
        other = dataclasses.replace(plan, code_version=version)
        state.work.mkdir(parents=True)
        state.save_plan(other, unit_rows=[1], input_rows=1, yields=[])
        message = f"made by {age} version of mmloom; start a new --output"
        with pytest.raises(UserError, match=message):
            state.is_complete(plan)
        write_folder(state.output, [], job="laion", plan=dataclasses.asdict(other))
        with pytest.raises(UserError, match=message):
            state.is_complete(plan)


def test_foreign_shards_are_refused(listing: Path, tmp_path: Path) -> None:
    plan = make_plan("laion", [listing], {})
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.arrow").write_bytes(b"")
    with pytest.raises(UserError, match="Arrow files that no ETL job wrote"):
        JobState(output).is_complete(plan)
    write_folder(tmp_path / "world", [], job="worlds")
    with pytest.raises(UserError, match="it was not written by an ETL job"):
        JobState(tmp_path / "world").is_complete(plan)


def test_two_runs_cannot_use_one_folder(tmp_path: Path) -> None:
    state = JobState(tmp_path / "out")
    second = JobState(tmp_path / "out").lock()
    with state.lock(), pytest.raises(UserError, match=f"in use by process {os.getpid()} on"):
        second.__enter__()
    with state.lock():
        pass


def test_discarding_keeps_results(tmp_path: Path) -> None:
    state = JobState(tmp_path / "out")
    write_json(state.work / "plan.json", {})
    write_json(state.output / "result.json", {})
    state.discard()
    assert [path.name for path in state.output.iterdir()] == ["result.json"]


def test_leftovers_of_a_killed_discard_are_removed(tmp_path: Path) -> None:
    state = JobState(tmp_path / "out")
    write_json(state.output / "result.json", {})
    write_json(state.output / ".work.0123.partial" / "unit-00000" / "result.json", {})
    state.remove_leftovers()
    assert [path.name for path in state.output.iterdir()] == ["result.json"]


def test_the_report_shows_reasons_and_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = caption_shards(tmp_path / "shards", 4)
    shards = read_manifest(folder).shards
    drops = {"http_404": 5, "truncated": 2}
    details = {"yields": [{"step": "download", "rows_in": 11, "rows_out": 6}]}
    manifest = Manifest(
        job="laion",
        plan={},
        input_rows=11,
        rows=4,
        drops=drops,
        shards=shards,
        details=details,
    )
    write_report(folder, manifest)
    page = (folder / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4
    assert "http_404" in page
    assert "<svg" in page
    assert "54.5%" in page
    assert drops_chart(drops) == drops_chart(drops)
    print_summary(folder, manifest, as_json=False)
    assert "http_404" in capsys.readouterr().out
