import pyarrow as pa
import pytest

from etl.cli import UserError
from etl.filters.policy import Policy, ScoreBound, read_bounds


def table(**scores: list[float | None]) -> pa.Table:
    return pa.table({f"score.{k}": pa.array(v, pa.float32()) for k, v in scores.items()})


def test_the_first_violated_bound_is_the_reason() -> None:
    policy = Policy(
        bounds=(
            ScoreBound(score="similarity", minimum=0.3),
            ScoreBound(score="punsafe", minimum=0.1, maximum=0.5),
        )
    )
    found = table(similarity=[0.1, 0.9, 0.9, 0.9], punsafe=[0.9, 0.9, 0.05, 0.5])
    assert policy(found).reasons == [
        "similarity_too_low",
        "punsafe_too_high",
        "punsafe_too_low",
        None,
    ]


def test_a_row_without_a_score_passes_its_bound() -> None:
    policy = Policy(
        bounds=(ScoreBound(score="aesthetic", minimum=5), ScoreBound(score="punsafe", maximum=0.5))
    )
    assert policy(table(punsafe=[None, 0.9])).reasons == [None, "punsafe_too_high"]
    assert policy(table(punsafe=[])).reasons == []


def test_a_score_at_its_bound_is_within_it() -> None:
    published = [0.8, 0.35, 0.3, 0.28]
    for value in published:
        policy = Policy(bounds=(ScoreBound(score="x", minimum=value, maximum=value),))
        assert policy(table(x=[value])).reasons == [None]


def test_bounds_are_parsed_from_options() -> None:
    known = ["punsafe", "similarity"]
    assert read_bounds(["similarity=0.3"], ["punsafe=1e-1"], known).bounds == (
        ScoreBound(score="similarity", minimum=0.3),
        ScoreBound(score="punsafe", maximum=0.1),
    )
    with pytest.raises(
        UserError, match="--minimum similarty=1: no score 'similarty' among punsafe,"
    ):
        read_bounds(["similarty=1"], [], known)
    with pytest.raises(UserError, match="--maximum punsafe: want a score and a number"):
        read_bounds([], ["punsafe"], known)
    with pytest.raises(UserError, match="--maximum punsafe=nan: want a score and a number"):
        read_bounds([], ["punsafe=nan"], known)
