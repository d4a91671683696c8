from pathlib import Path

import pyarrow as pa
import pytest

from etl.digits.records import pair_sample
from etl.runtime.job_state import JobState, write_table
from etl.runtime.scores import keys_and_scores, scores_path, with_scores
from etl.storage.schema import SCHEMA, from_row, to_batch


def test_keys_have_the_scores_that_were_computed(tmp_path: Path) -> None:
    state = JobState(tmp_path)
    keys = pa.table({"row": [3, 4], "key": ["a", "b"]})
    write_table(state.keys_path(0), keys)
    assert keys_and_scores(state, 0).equals(keys)
    write_table(scores_path(state, 0), pa.table({"score.clip": [0.5, None]}))
    assert keys_and_scores(state, 0).to_pylist() == [
        {"row": 3, "key": "a", "score.clip": 0.5},
        {"row": 4, "key": "b", "score.clip": None},
    ]


def test_samples_get_further_scores_and_stay_as_they_are() -> None:
    samples = pa.Table.from_batches([to_batch(pair_sample(0, row) for row in range(2))])
    scores = pa.table({"score.clip": pa.array([0.25, None], pa.float32())})
    found = with_scores(with_scores(samples, scores), pa.table({"score.x": [1.0, 2.0]}))
    assert found.schema == SCHEMA
    first, second = map(from_row, found.to_pylist())
    assert dict(first.scores) == {"clip": 0.25, "x": 1.0}
    assert dict(second.scores) == {"x": pytest.approx(2.0)}
    assert found.drop_columns("scores").equals(samples.drop_columns("scores"))
