"""Near texts, against the similarity of their sets of runs."""

import numpy as np
import pyarrow as pa
import pytest

from etl.dedup.ngrams import hash_words, ngrams, words
from etl.dedup.texts import NearTexts
from etl.runtime.worker import STAGED_SCHEMA
from etl.sources.base import TURNS
from etl.sources.base import texts as minhash


def table(*rows: tuple[str, str]) -> pa.Table:
    """Rows of a key (of one medium, or "") and a text."""
    kept = [
        {"row": 10 * n, "id": "", "url": "", "key": key, "phash": [None] * len(key.split())}
        for n, (key, _) in enumerate(rows)
    ]
    said = [[{"role": "assistant", "text": text}] for _, text in rows]
    found = pa.Table.from_pylist(kept, schema=STAGED_SCHEMA)
    return found.append_column("turns", pa.array(said, TURNS))


def dropped(found: pa.Table, jaccard: float, identity: str = "medium") -> dict[int, str | None]:
    result = NearTexts(similarity=jaccard, identity=identity)(found)
    told = zip(result.reasons, result.details, strict=True)
    return {place: detail for place, (reason, detail) in enumerate(told) if reason}


def runs(text: str) -> set[tuple[str, ...]]:
    said = words(text)
    size = min(5, len(said))
    return {tuple(said[place : place + size]) for place in range(len(said) - size + 1)}


def texts(number: int, rng: np.random.Generator) -> list[str]:
    """Texts of few words, half of them changed shard_copy of others."""
    made: list[list[str]] = []
    for place in range(number):
        if place % 2 and rng.random() < 0.9:
            said = list(made[rng.integers(place)])
            for _ in range(rng.integers(0, 4)):
                said[rng.integers(len(said))] = f"w{rng.integers(50)}"
        else:
            said = [f"w{word}" for word in rng.integers(0, 50, rng.integers(3, 40))]
        made.append(said)
    return [" ".join(said) for said in made]


@pytest.mark.parametrize("neighbours", [64, 2])
@pytest.mark.parametrize("jaccard", [0.5, 0.8, 1.0])
def test_as_by_force(jaccard: float, neighbours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minhash, "_NEIGHBOURS", neighbours)
    said = texts(150, np.random.default_rng(0))
    sets = [runs(text) for text in said]
    kept: list[int] = []
    for late, mine in enumerate(sets):
        if not any(len(mine & sets[o]) / len(mine | sets[o]) >= jaccard for o in kept):
            kept.append(late)
    gone = dropped(table(*[("m", text) for text in said]), jaccard)
    wanted = set(range(150)) - set(kept)
    assert len(wanted ^ set(gone)) <= 0.05 * len(wanted)  # what MinHash may miss
    assert len(wanted) > 5
    for late, detail in gone.items():
        early = int(detail.removeprefix("like row ")) // 10
        assert early < late
        assert len(sets[early] & sets[late]) / len(sets[early] | sets[late]) >= jaccard


def test_the_earliest_stays_whatever_its_case_and_punctuation() -> None:
    found = table(("a", "A red, red rose."), ("b", "<image>a red red ROSE"), ("c", "a red nose"))
    assert dropped(found, 0.9) == {1: "like row 0"}


def test_records_must_have_the_same_media() -> None:
    text = "what is in this picture and where does it stand"
    found = table(("a s", text), ("b s", text), ("a t", f"{text} now"), ("a u", "something else"))
    found = found.set_column(
        found.schema.get_field_index("phash"),
        "phash",
        pa.array([[1]] * 4, STAGED_SCHEMA.field("phash").type),
    )
    assert dropped(found, 0.8, "record") == {2: "like row 0"}


def test_what_says_nothing_is_kept() -> None:
    assert dropped(table(("a", ""), ("a", "..."), ("a", "<image>")), 0.5) == {}
    assert dropped(table(), 0.5) == {}


def test_a_flood_of_alike_texts_is_not_compared_each_with_each() -> None:
    same = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    flood = table(*[("a", f"{same} {number}") for number in range(1000)])
    assert set(dropped(flood, 0.7)) == set(range(1, 1000))


def test_words_without_blanks() -> None:
    assert words("一只狗 and 2 Cats") == ["一", "只", "狗", "and", "2", "cats"]


def test_runs_of_words() -> None:
    found = hash_words([["a", "b", "c"], ["b", "c"], ["x"], []])
    values, owner = ngrams(found, 2, np.array([0, 1, 2, 3]))
    assert owner.tolist() == [0, 0, 1]
    assert values[1] == values[2] != values[0]
    assert ngrams(found, 1, np.array([1]))[0].tolist() != values[:2].tolist()
