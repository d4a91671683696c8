"""Samples are shown as the model gets them: every kind of medium, by the code of training."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from etl.cli import UserError
from etl.digits.records import dialogue_sample
from etl.digits.subjects import sample as subject_sample
from etl.storage.schema import Sample
from etl.storage.shards import ShardSet, write_folder
from model.build import build_tokenizer
from model.presets import system
from pipeline.data.encode import SampleEncoder
from pipeline.train.show_sample import show_sample
from tests.pages import Page
from tests.worlds import generation_sample

PRESETS = {
    "image": "digits",
    "video": "digits_video",
    "audio": "digits_audio",
    "points": "digits_points",
}


def samples(kind: str) -> list[Sample]:
    """Return a dialogue about each of two media, and one whose picture is none."""
    make = dialogue_sample if kind == "image" else partial(subject_sample, kind, "dialogues")
    found = [make(0, number) for number in range(3)]
    broken = replace(found[2].media[0], data=b"nothing")
    return [*found[:2], replace(found[2], media=(broken, *found[2].media[1:]))]


@pytest.mark.parametrize("kind", PRESETS)
def test_a_sample_is_shown_as_the_encoder_gives_it(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_folder(tmp_path / "data", samples(kind), job="test")
    page = tmp_path / "page.html"
    words = ["--preset", PRESETS[kind], "--data", str(data), "--output", str(page)]
    assert show_sample([*words, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)

    preset = system(PRESETS[kind])
    tokenizer = build_tokenizer(preset.model, weights="pretrained")
    stage = preset.sft
    encoder = SampleEncoder(
        preset.model, tokenizer, prompt=stage.prompt, max_tokens=stage.max_tokens
    )
    shards = ShardSet([data])
    for row, one in enumerate(shown[:2]):
        example = encoder.encode(shards[row])
        assert [medium["shape"] for medium in one["media"]] == [
            list(medium.input_values.shape) for medium in example.media
        ]
        tokens = one["tokens"]
        assert [token["first"] for token in tokens[1:]] == [t["last"] + 1 for t in tokens[:-1]]
        assert tokens[-1]["last"] == len(example.ids) - 1
        held = [token for token in tokens if token["text"] == f"<{kind}>"]
        assert sum(t["last"] - t["first"] + 1 for t in held) == example.kinds.count(kind)
        targets = [token["id"] for token in tokens if token["target"]]
        assert targets == [label for label in example.labels if label >= 0]
        answers = [turn.text for turn in shards[row].turns if turn.role == "assistant"]
        words_of_targets = tokenizer.decode(targets, skip_special_tokens=True)
        assert words_of_targets.replace(" ", "") == "".join(answers).replace(" ", "")
    assert "skip_reason" in shown[2]
    assert shown[2]["skip_reason"]
    found = Page(page.read_text())
    assert any("as the encoders get it" in text for text in found.texts)
    drawn = [a["src"] for tag, a in found.tags if tag == "img" and "image/png" in (a["src"] or "")]
    assert drawn


def test_lines_have_positions_targets_and_generated_media(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_folder(tmp_path / "data", [generation_sample(0, 0)], job="test")
    words = ["--preset", "digits_any", "--data", str(data), "--n", "1"]
    assert show_sample(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("row 0  drawn-")
    assert any("<to_image>" in line for line in lines)
    with pytest.raises(UserError, match="--first 1: the data have 1 samples"):
        show_sample([*words, "--first", "1"])
    with pytest.raises(UserError, match="--n: 0, want 1 or more"):
        show_sample([*words[:-1], "0"])
