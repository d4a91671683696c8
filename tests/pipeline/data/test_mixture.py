"""Shares, temperature and cap decide how often rows come in an epoch."""

import pytest

from etl.cli import UserError
from pipeline.config.mix import Mix
from pipeline.data.mixture import sources

FOLDERS = ["data/pairs", "data/dialogues", "data/text"]
ROWS = [1000, 200, 50]


def draws(*shares: str, temperature: float = 1.0, cap: float | None = None) -> list[int]:
    mix = Mix(shares=shares, temperature=temperature, cap=cap)
    return [source.draws for source in sources(FOLDERS, ROWS, mix)]


def test_without_a_mix_each_row_comes_once() -> None:
    assert draws() == ROWS
    assert [source.first for source in sources(FOLDERS, ROWS, Mix())] == [0, 1000, 1200]


def test_a_number_says_how_often_and_zero_leaves_out() -> None:
    assert draws("pairs=0.5", "data/text=3") == [500, 200, 150]
    assert draws("pairs=0") == [200, 50]


def test_a_percentage_is_a_share_of_everything_drawn() -> None:
    found = draws("text=10%")
    assert found[:2] == [1000, 200]
    assert found[2] / sum(found) == pytest.approx(0.1, abs=1e-3)
    assert draws("pairs=20%", "dialogues=30%", "text=50%") == [250, 375, 625]


def test_a_temperature_evens_sizes_out_and_keeps_the_epoch_as_long() -> None:
    found = draws(temperature=2)
    assert sum(found) == pytest.approx(sum(ROWS), abs=2)
    assert found[0] < 1000
    assert found[2] > 50
    assert found[0] / found[2] == pytest.approx((1000 / 50) ** 0.5, rel=0.02)
    assert draws(temperature=1e9) == pytest.approx([417] * 3, abs=1)


def test_a_cap_bounds_how_often_a_row_comes() -> None:
    assert draws("text=50%", cap=2) == [1000, 200, 100]


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        (["txt=1"], "did you mean 'text'"),
        (["text=much"], "want FOLDER=TIMES or FOLDER=PERCENT%"),
        (["text=-1"], "want FOLDER=TIMES"),
        (["text=1", "data/text=2"], "has a share already"),
        (["text=60%", "pairs=40%"], "want less than 100 %"),
        (["text=10%", "pairs=10%", "dialogues=10%"], "want 100 % in all"),
        (["text=0", "pairs=0", "dialogues=0"], "leaves no data"),
    ],
)
def test_a_mix_that_means_nothing_is_refused(shares: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        draws(*shares)


def test_two_folders_of_one_name_need_their_paths() -> None:
    folders = ["a/shards", "b/shards"]
    with pytest.raises(UserError, match="give the path"):
        sources(folders, [3, 4], Mix(shares=("shards=2",)))
    found = sources(folders, [3, 4], Mix(shares=("b/shards=2",)))
    assert [source.draws for source in found] == [3, 8]
