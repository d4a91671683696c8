"""CLIP scores of staged units, and their effect on the final shards, without Ray."""

from pathlib import Path

import pyarrow as pa
import pytest

from etl.digits.records import dialogue_sample, pair_sample
from etl.filters.base import DROPS
from etl.filters.clip import ClipSpec
from etl.laion import Options
from etl.runtime.clip_filter import ClipScorer
from etl.runtime.global_filters import global_filters, run_global_filters
from etl.runtime.job_state import DROPPED, KEYS, STAGED, JobState, UnitResult, write_table
from etl.runtime.scores import scores_path
from etl.runtime.worker import STAGED_SCHEMA, FinalShardWriter, KeptRows
from etl.storage.manifest import Manifest, write_manifest
from etl.storage.schema import Sample
from etl.storage.shards import ShardSet, write_shard
from tests.etl.filters.tiny_clip import save_tiny_clip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def stage(state: JobState, number: int, first: int, samples: list[Sample]) -> None:
    """Write what a worker would."""
    with state.open_unit(number) as folder:
        rows = [
            {"row": row, "id": one.id, "url": None, "key": one.id, "phash": [0]}
            for row, one in enumerate(samples, first)
        ]
        write_table(folder / KEYS, pa.Table.from_pylist(rows, schema=STAGED_SCHEMA))
        write_table(folder / DROPPED, DROPS.empty_table())
        shard = write_shard(folder, STAGED, samples)
        state.commit_unit(folder, UnitResult(number=number, yields=(), shard=shard))


def test_pairs_are_scored_and_dialogues_are_not(model: Path, tmp_path: Path) -> None:
    state = JobState(tmp_path / "out")
    state.work.mkdir(parents=True)
    stage(state, 0, 0, [pair_sample(0, row) for row in range(5)])
    stage(state, 1, 5, [dialogue_sample(0, 0), pair_sample(0, 7)])
    spec = ClipSpec(model=str(model), min_score=None, batch_size=4)
    scorer = ClipScorer(state.output, spec, cuda=False, threads=1)
    for number in range(2):
        scorer(number)
    with pa.ipc.open_file(scores_path(state, 1)) as reader:
        second = reader.read_all()["score.clip"].to_pylist()
    assert second[0] is None
    with pa.ipc.open_file(scores_path(state, 0)) as reader:
        first = reader.read_all()["score.clip"].to_pylist()
    threshold = sorted(first)[2]
    options = Options(
        input=tmp_path, output=state.output, clip_model=str(model), min_clip=threshold - 1e-6
    )
    result = run_global_filters(state, [5, 2], global_filters(options, "medium"))
    low = [row for row, value in enumerate([*first, threshold, second[1]]) if value < threshold]
    assert result.drops["row"].to_pylist() == low
    assert set(result.drops["reason"].to_pylist()) == {"clip_too_low"}
    shards = []
    for number, rows in result.rows.items():
        if rows:
            FinalShardWriter(state.output)(KeptRows(unit=number, rows=rows))
            shards.append(state.final_shard(number))
    kept = 7 - len(low)
    write_manifest(
        state.output,
        Manifest(job="t", plan={}, input_rows=kept, rows=kept, drops={}, shards=tuple(shards)),
    )
    samples = ShardSet([state.output])
    scores = {one.id: one.scores.get("clip") for one in map(samples.__getitem__, range(kept))}
    expected = {pair_sample(0, row).id: v for row, v in enumerate(first) if v >= threshold}
    assert expected.items() <= scores.items()
    assert scores[dialogue_sample(0, 0).id] is None


def test_a_later_policy_only_scores(model: Path, tmp_path: Path) -> None:
    options = Options(
        input=tmp_path, output=tmp_path, clip_model=str(model), min_clip=0.9, policy="after"
    )
    assert options.clip.min_score is None
