"""Decontamination: images and texts of evaluation sets are found in rows."""

import numpy as np
import pyarrow as pa

from etl.dedup.decontaminate import EvalImages, EvalItem, EvalTexts
from etl.runtime.worker import STAGED_SCHEMA
from etl.sources.base import TURNS


def images(*rows: tuple[str, list[int | None]]) -> pa.Table:
    return pa.Table.from_pylist(
        [{"row": n, "id": "", "url": "", "key": k, "phash": p} for n, (k, p) in enumerate(rows)],
        schema=STAGED_SCHEMA,
    )


def texts(*rows: str) -> pa.Table:
    turns = [[{"role": "user", "text": "<image>"}, {"role": "assistant", "text": t}] for t in rows]
    return pa.table({"turns": pa.array(turns, TURNS)})


def numbered(first: int, count: int) -> str:
    return " ".join(f"w{number}" for number in range(first, first + count))


def test_images_match_by_bytes_or_by_hash() -> None:
    items = [EvalItem(name="e:1", digests=["aa"]), EvalItem(name="e:2", hashes=[0b1111, 1 << 50])]
    rows = images(
        ("aa", [1 << 30]),
        ("bb", [0b1111]),
        ("cc", [0b0111]),
        ("dd", [0b0001 << 20]),
        ("ee aa", [None, None]),
        ("ff", []),
        ("gg aa", [7]),
    )
    result = EvalImages(items=items, distance=1)(rows)
    assert result.details == [
        "e:1",
        "e:2, 0 bits off",
        "e:2, 1 bits off",
        None,
        "e:1",
        None,
        "e:2, 1 bits off",
    ]
    assert [bool(reason) for reason in result.reasons] == [bool(d) for d in result.details]
    none = EvalImages(items=[], distance=1)(rows)
    assert none.reasons == [None] * 7


def test_hash_matches_agree_with_brute_force() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.integers(0, 1 << 20, 60).tolist()
    mine = rng.integers(0, 1 << 20, 300).tolist()
    items = [EvalItem(name=str(one), hashes=[one]) for one in theirs]
    result = EvalImages(items=items, distance=3)(images(*[("k", [one]) for one in mine]))
    for one, detail in zip(mine, result.details, strict=True):
        nearest = min((one ^ other).bit_count() for other in theirs)
        assert (detail is not None) == (nearest <= 3)
        assert detail is None or detail.endswith(f"{nearest} bits off")


def test_ngrams_of_thirteen_words_match() -> None:
    items = [EvalItem(name="e:0", texts=["short", numbered(0, 30)])]
    rows = texts(
        f"so {numbered(5, 13).upper()}, they say",
        numbered(5, 12),
        "short",
        f"{numbered(0, 6)} but {numbered(6, 6)}",
    )
    result = EvalTexts(items=items)(rows)
    assert result.reasons == ["eval_text", None, None, None]
    assert result.details[0] == "e:0"


def test_shorter_texts_count_as_a_whole() -> None:
    items = [
        EvalItem(name="e:0", texts=[numbered(0, 9)]),
        EvalItem(name="e:1", texts=[numbered(20, 7)]),
    ]
    result = EvalTexts(items=items)(texts(numbered(0, 12), numbered(0, 8), numbered(20, 12)))
    assert result.details == ["e:0", None, None]


def test_common_phrases_do_not_count_as_contamination() -> None:
    items = [EvalItem(name="e:0", texts=[numbered(0, 13), numbered(50, 13)])]
    rows = texts(*[f"{numbered(0, 13)} x{row}" for row in range(11)], numbered(50, 14))
    assert EvalTexts(items=items)(rows).details == [None] * 11 + ["e:0"]


def test_empty_inputs() -> None:
    assert EvalTexts(items=[])(texts("a")).reasons == [None]
    assert EvalTexts(items=[EvalItem(name="e", texts=[numbered(0, 13)])])(texts()).reasons == []
