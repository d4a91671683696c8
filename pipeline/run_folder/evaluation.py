"""The end of a run's page: scores and example answers of its evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etl.report.media import Embedded
from etl.report.page import Card, Section

EVALUATION = "evaluation"
EXAMPLES = "examples.json"
"""In the folder of an evaluation: cards with media, and the `source` of their answers."""


def evaluation_sections(folder: Path) -> list[Section]:
    """Return scores and example answers of an evaluation; nothing if there is none."""
    if not (folder / "scores.json").is_file():
        return []
    scores = json.loads((folder / "scores.json").read_bytes())
    if "retrieval" in scores:
        return [_retrieval(one) for one in scores.values()]
    return [
        _benchmark_scores(scores) if "benchmark" in scores else _exact_scores(scores),
        _caption_scores(scores.get("captions", {})),
        _examples(folder / EXAMPLES),
    ]


def _examples(path: Path) -> Section:
    if not path.is_file():
        return Section(heading="")
    content = json.loads(path.read_bytes())
    cards = []
    for card in content["cards"]:
        media = [Embedded(**medium) for medium in card.pop("media")]
        cards.append(Card(media=media, **card))
    note = f"The first answers to each kind of question, right or wrong: {content['source']}."
    return Section(heading="Example answers", cards=cards, note=note)


def _exact_scores(scores: Mapping[str, Any]) -> Section:
    names = {"accuracy": "with media", "blind": "blind", "chance": "chance"}
    rates = {"word_error_rate": "word error rate", "character_error_rate": "character error rate"}
    names |= {name: title for name, title in rates.items() if name in scores}  # not in old ones
    rows = [
        (kind or "–", *(f"{one[name]:.1%}" for name in names), one["questions"])
        for kind, one in scores["kinds"].items()
    ]
    tiles = [(title, f"{scores[name]:.1%}") for name, title in names.items()]
    tiles.append(("questions", scores["questions"]))
    if scores.get("skipped"):
        tiles.append(("skipped", scores["skipped"]))
    if scores.get("cut"):
        tiles.append(("media longer than the encoder takes", scores["cut"]))
    return Section(
        heading="Evaluation: exact answers",
        tiles=tiles,
        columns=("kind", *names.values(), "questions"),
        rows=rows if len(rows) > 1 else (),
        note="Blind is the same model without the media; chance is always giving the most frequent "
        "true answer to that kind of question. Error rates are of the answers with media.",
    )


def _retrieval(scores: Mapping[str, Any]) -> Section:
    ranks = list(scores["text_of_medium"])
    return Section(
        heading="Evaluation: retrieval",
        columns=("", *(f"R@{k}" for k in ranks), "of"),
        rows=[
            (name, *(f"{scores[key][k]:.1%}" for k in ranks), scores[of])
            for name, key, of in (
                ("text of a medium", "text_of_medium", "media"),
                ("medium of a text", "medium_of_text", "texts"),
            )
        ],
        note=f"Ranked by the {scores.get('by', 'contrastive similarity')}.",
    )


def _caption_scores(captions: Mapping[str, Any]) -> Section:
    """Return CIDEr-D, BLEU-4 and ROUGE-L; nothing where no captions were asked for."""
    names = {"cider_d": "CIDEr-D", "bleu_4": "BLEU-4", "rouge_l": "ROUGE-L"}
    views = {"scores": "with media", "blind": "blind"}
    return Section(
        heading="Evaluation: captions",
        columns=("", *names.values(), "captioned", "references"),
        rows=[
            (
                views[view],
                *(f"{one[name]:.3f}" for name in names),
                one["images"],
                one["references"],
            )
            for view, one in captions.items()
        ],
    )


def _benchmark_scores(scores: Mapping[str, Any]) -> Section:
    views = {"scores": "with media", "blind": "blind"}
    metrics = dict.fromkeys(name for key in views for one in scores[key].values() for name in one)
    return Section(
        heading=f"Evaluation: {scores['benchmark']}, {scores['questions']:,} questions",
        columns=("split", "", *metrics),
        rows=[
            (split, view, *(one.get(name) for name in metrics))
            for key, view in views.items()
            for split, one in scores[key].items()
        ],
    )
