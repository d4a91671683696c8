"""Real shards of the digits world in a moment, for tests that need data but no download."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from etl.digits.records import dialogue_sample, pair_sample, question_sample
from etl.digits.subjects import sample as subject_sample
from etl.storage.schema import Sample, Turn
from etl.storage.shards import write_folder
from model.spec import Stage, System
from model.spec.output_branches import Generation, OutputBranchSpec
from model.spec.system import TRAINABLE_OUTPUTS


def caption_shards(folder: Path, rows: int, *, seed: int = 0) -> Path:
    return _shards(folder, rows, seed, pair_sample)


def instruct_shards(folder: Path, rows: int, *, seed: int = 0) -> Path:
    return _shards(folder, rows, seed, dialogue_sample)


def question_shards(folder: Path, rows: int, *, seed: int = 0) -> Path:
    return _shards(folder, rows, seed, question_sample)


def preset_shards(folder: Path, *, rows: int = 48) -> None:
    """Write `KIND/STAGE` for all kinds of media, and texts that ask for nothing but reading."""
    _shards(folder / "image" / "pt", rows, 0, pair_sample)
    _shards(folder / "image" / "sft", rows, 0, dialogue_sample)
    for kind in ("video", "audio", "points"):
        _shards(folder / kind / "pt", rows, 0, partial(subject_sample, kind, "captions"))
        _shards(folder / kind / "sft", rows, 0, partial(subject_sample, kind, "dialogues"))
    for stage in ("pt", "sft"):
        _shards(folder / "text" / stage, rows // 4, 0, text_sample)


def text_sample(seed: int, number: int) -> Sample:
    """Return a dialogue without media."""
    turns = (
        Turn(role="user", text=f"What comes after {number}"),
        Turn(role="assistant", text=str(number + 1)),
    )
    return Sample(id=f"text-{seed}-{number:06d}", source="worlds", turns=turns)


def drawing(preset: System) -> System:
    """Return a preset with a tiny way out for pictures, which both of its stages train."""
    model = replace(preset.model, outputs=(OutputBranchSpec(signals=3).tiny(),))

    def stage(given: Stage) -> Stage:
        trains = (*given.trainable, *TRAINABLE_OUTPUTS)
        return replace(given, generation=Generation(), trainable=trains)

    return replace(preset, model=model, pt=stage(preset.pt), sft=stage(preset.sft))


def generative_overrides(preset: System) -> list[str]:
    """Return the settings of `--set` that make a preset the one that `drawing` returns."""
    drawn = json.loads(json.dumps(asdict(drawing(preset))))
    stages = [f"{name}.{field}" for name in ("pt", "sft") for field in ("generation", "trainable")]
    words = [f"model.outputs={json.dumps(drawn['model']['outputs'])}"]
    return words + [f"{s}={json.dumps(drawn[s.split('.')[0]][s.split('.')[1]])}" for s in stages]


def generation_shards(folder: Path, rows: int, *, seed: int = 0) -> Path:
    """Pairs turned round: the user asks for a picture by its caption, and the assistant draws."""
    return _shards(folder, rows, seed, generation_sample)


def generation_sample(seed: int, number: int) -> Sample:
    """Return a pair in which the picture is what is to be said."""
    pair = pair_sample(seed, number)
    caption = next(turn.text for turn in pair.turns if turn.role == "assistant")
    turns = (Turn(role="user", text=caption), Turn(role="assistant", text="<image>"))
    return replace(pair, id=f"drawn-{pair.id}", turns=turns)


def _shards(folder: Path, rows: int, seed: int, make: Callable[[int, int], Sample]) -> Path:
    samples = (make(seed, row) for row in range(rows))
    return write_folder(folder, samples, job="worlds", rows_per_shard=256)
