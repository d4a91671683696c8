"""Near-duplicate texts, compared with the exact similarity of their n-grams."""

import numpy as np
import pyarrow as pa
import pytest

from etl.dedup import texts as minhash
from etl.dedup.ngrams import hash_words, ngrams, words
from etl.dedup.texts import NearTexts
from etl.runtime.worker import STAGED_SCHEMA
from etl.sources.base import TURNS


def table(*rows: tuple[str, str]) -> pa.Table:
    """Rows of a key (of one medium, or "") and a text."""
    kept = [
        {"row": 10 * n, "id": "", "url": "", "key": key, "phash": [None] * len(key.split())}
        for n, (key, _) in enumerate(rows)
    ]
    turns = [[{"role": "assistant", "text": text}] for _, text in rows]
    found = pa.Table.from_pylist(kept, schema=STAGED_SCHEMA)
    return found.append_column("turns", pa.array(turns, TURNS))


def dropped(found: pa.Table, jaccard: float, identity: str = "medium") -> dict[int, str | None]:
    result = NearTexts(similarity=jaccard, identity=identity)(found)
    outcome = zip(result.reasons, result.details, strict=True)
    return {row: detail for row, (reason, detail) in enumerate(outcome) if reason}


def ngram_set(text: str) -> set[tuple[str, ...]]:
    tokens = words(text)
    size = min(5, len(tokens))
    return {tuple(tokens[n : n + size]) for n in range(len(tokens) - size + 1)}


def random_texts(number: int, rng: np.random.Generator) -> list[str]:
    """Texts over a small vocabulary; half of them are modified copies of others."""
    texts: list[list[str]] = []
    for index in range(number):
        if index % 2 and rng.random() < 0.9:
            text = list(texts[rng.integers(index)])
            for _ in range(rng.integers(0, 4)):
                text[rng.integers(len(text))] = f"w{rng.integers(50)}"
        else:
            text = [f"w{word}" for word in rng.integers(0, 50, rng.integers(3, 40))]
        texts.append(text)
    return [" ".join(text) for text in texts]


@pytest.mark.parametrize("neighbours", [64, 2])
@pytest.mark.parametrize("jaccard", [0.5, 0.8, 1.0])
def test_duplicates_agree_with_brute_force(
    jaccard: float, neighbours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minhash, "_NEIGHBOURS", neighbours)
    texts = random_texts(150, np.random.default_rng(0))
    sets = [ngram_set(text) for text in texts]
    kept: list[int] = []
    for late, mine in enumerate(sets):
        if not any(len(mine & sets[o]) / len(mine | sets[o]) >= jaccard for o in kept):
            kept.append(late)
    duplicates = dropped(table(*[("m", text) for text in texts]), jaccard)
    expected = set(range(150)) - set(kept)
    assert len(expected ^ set(duplicates)) <= 0.05 * len(expected)  # what MinHash may miss
    assert len(expected) > 5
    for late, detail in duplicates.items():
        early = int(detail.removeprefix("like row ")) // 10
        assert early < late
        assert len(sets[early] & sets[late]) / len(sets[early] | sets[late]) >= jaccard


def test_the_earliest_row_is_kept_and_case_and_punctuation_do_not_count() -> None:
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


def test_texts_without_words_are_kept() -> None:
    assert dropped(table(("a", ""), ("a", "..."), ("a", "<image>")), 0.5) == {}
    assert dropped(table(), 0.5) == {}


def test_many_similar_texts_are_not_compared_pairwise() -> None:
    same = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    flood = table(*[("a", f"{same} {number}") for number in range(1000)])
    assert set(dropped(flood, 0.7)) == set(range(1, 1000))


def test_words_of_languages_without_blanks() -> None:
    assert words("一只狗 and 2 Cats") == ["一", "只", "狗", "and", "2", "cats"]


def test_word_ngrams() -> None:
    found = hash_words([["a", "b", "c"], ["b", "c"], ["x"], []])
    values, owner = ngrams(found, 2, np.array([0, 1, 2, 3]))
    assert owner.tolist() == [0, 0, 1]
    assert values[1] == values[2] != values[0]
    assert ngrams(found, 1, np.array([1]))[0].tolist() != values[:2].tolist()
