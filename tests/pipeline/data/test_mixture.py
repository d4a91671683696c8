"""Shares, temperature and cap determine how often samples come in an epoch."""

import pytest

from etl.cli import UserError
from pipeline.config.mix import Mix
from pipeline.data.mixture import build_sources

FOLDERS = ["data/pairs", "data/dialogues", "data/text"]
ROWS = [1000, 200, 50]


def epoch_sizes(*shares: str, temperature: float = 1.0, cap: float | None = None) -> list[int]:
    mix = Mix(shares=shares, temperature=temperature, cap=cap)
    return [source.samples_per_epoch for source in build_sources(FOLDERS, ROWS, mix)]


def test_without_a_mix_each_sample_comes_once() -> None:
    assert epoch_sizes() == ROWS
    assert [source.first for source in build_sources(FOLDERS, ROWS, Mix())] == [0, 1000, 1200]


def test_a_number_is_a_factor_and_zero_leaves_a_folder_out() -> None:
    assert epoch_sizes("pairs=0.5", "data/text=3") == [500, 200, 150]
    assert epoch_sizes("pairs=0") == [200, 50]


def test_a_percentage_is_a_share_of_the_epoch() -> None:
    found = epoch_sizes("text=10%")
    assert found[:2] == [1000, 200]
    assert found[2] / sum(found) == pytest.approx(0.1, abs=1e-3)
    assert epoch_sizes("pairs=20%", "dialogues=30%", "text=50%") == [250, 375, 625]


def test_a_temperature_evens_out_sizes_and_keeps_the_epoch_s_length() -> None:
    found = epoch_sizes(temperature=2)
    assert sum(found) == pytest.approx(sum(ROWS), abs=2)
    assert found[0] < 1000
    assert found[2] > 50
    assert found[0] / found[2] == pytest.approx((1000 / 50) ** 0.5, rel=0.02)
    assert epoch_sizes(temperature=1e9) == pytest.approx([417] * 3, abs=1)


def test_a_cap_limits_how_often_a_sample_comes() -> None:
    assert epoch_sizes("text=50%", cap=2) == [1000, 200, 100]


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
def test_an_invalid_mix_is_an_error(shares: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        epoch_sizes(*shares)


def test_two_folders_of_the_same_name_need_their_paths() -> None:
    folders = ["a/shards", "b/shards"]
    with pytest.raises(UserError, match="give the path"):
        build_sources(folders, [3, 4], Mix(shares=("shards=2",)))
    found = build_sources(folders, [3, 4], Mix(shares=("b/shards=2",)))
    assert [source.samples_per_epoch for source in found] == [3, 8]
