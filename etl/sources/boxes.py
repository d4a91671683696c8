"""Boxes in the texts of dialogues, as Shikra writes them: Shikra's own, Ferret's and ms-swift's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etl.sources.base import BadRecordError
from etl.sources.turns import Dialogue
from etl.storage.schema import Turn


def box_text(box: Any, size: tuple[Any, Any]) -> str:  # noqa: ANN401 - parsed JSON
    """A box or point, written as Shikra does (arXiv:2306.15195, §3.2): `[x_min,y_min,x_max,y_max]`.

    Args:
        box: four numbers, or two of a point; in pixels or normalised.
        size: the image's width and height as published; None for boxes that are normalised.

    Raises:
        BadRecordError: it is no box, or in pixels without a size.
    """
    try:
        sides = [float(side) for side in box]
    except (TypeError, ValueError):
        sides = []
    if len(sides) not in (2, 4):
        raise BadRecordError(f"want a box of four numbers, got {box!r:.60}")
    if not all(isinstance(side, int | float) and side > 0 for side in size):
        if max(sides) > 1:
            raise BadRecordError("its boxes are in pixels, but it has no width and height")
        size = (1, 1)
    values = [side / size[number % 2] for number, side in enumerate(sides)]
    return f"[{','.join(f'{value:.3f}' for value in values)}]"


def fill_boxes(record: Mapping[str, Any], dialogue: Dialogue) -> Dialogue:
    """A dialogue with the record's boxes in place of their marks.

    Ferret's `box_x1y1x2y2` has a list of boxes for each turn, `<bbox_location0>` and so on, in
    pixels of `image_w` and `image_h` (apple/ml-ferret, ferret/train/train.py). ms-swift's `objects`
    has `ref` and `bbox` for `<ref-object>` and `<bbox>`, in pixels of `width` and `height`, or
    normalised (`bbox_type: norm1`).

    Raises:
        BadRecordError: marks and boxes do not match.
    """
    if record.get("box_x1y1x2y2") is not None:
        return _fill_ferret(record, dialogue)
    objects = record.get("objects")
    if not isinstance(objects, dict) or not (objects.get("bbox") or objects.get("ref")):
        return dialogue
    is_normalised = objects.get("bbox_type") == "norm1"
    size = (None, None) if is_normalised else (record.get("width"), record.get("height"))
    boxes = [box_text(box, size) for box in objects.get("bbox") or ()]
    turns = _fill(dialogue.turns, "<ref-object>", list(map(str, objects.get("ref") or ())))
    return Dialogue(turns=_fill(turns, "<bbox>", boxes), named=dialogue.named)


def _fill_ferret(record: Mapping[str, Any], dialogue: Dialogue) -> Dialogue:
    boxes = record["box_x1y1x2y2"]
    spoken = [turn for turn in dialogue.turns if turn.role != "system"]
    if not isinstance(boxes, list) or len(boxes) != len(spoken):
        raise BadRecordError("want a list of boxes in box_x1y1x2y2 for each turn")
    size = (record.get("image_w"), record.get("image_h"))
    of_turn = iter(boxes)
    turns: list[Turn] = []
    for turn in dialogue.turns:
        listed = next(of_turn) or [] if turn in spoken else []
        if not isinstance(listed, list):
            raise BadRecordError(f"the boxes of a turn are {listed!r:.40}, want a list")
        own = [box_text(box, size) for box in listed]
        found = {int(number) for number in re.findall(r"<bbox_location(\d+)>", turn.text)}
        if found != set(range(len(own))):
            raise BadRecordError(f"a turn has {len(own)} boxes, but marks {sorted(found)}")
        text = re.sub(r"<bbox_location(\d+)>", lambda match: own[int(match[1])], turn.text)  # noqa: B023 - used at once
        turns.append(Turn(role=turn.role, text=text))
    return Dialogue(turns=tuple(turns), named=dialogue.named)


def _fill(turns: Sequence[Turn], mark: str, values: Sequence[str]) -> tuple[Turn, ...]:
    """Turns with values in place of a mark, in order."""
    count = sum(turn.text.count(mark) for turn in turns)
    if count != len(values):
        raise BadRecordError(f"{count} {mark} in its texts, but {len(values)} in its objects")
    rest: Iterator[str] = iter(values)
    take: Callable[[re.Match[str]], str] = lambda _: next(rest)  # noqa: E731
    return tuple(
        Turn(role=turn.role, text=re.sub(re.escape(mark), take, turn.text)) for turn in turns
    )
