"""Requests for generated media: what is held out, the lists as the ETL reads them, the judges."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from etl.cli import UserError
from etl.digits import generation, judges, tones
from etl.digits.__main__ import run
from etl.digits.checkpoints import sounds
from etl.digits.generation import CAPTIONS, TASKS, captioned, heard, request
from etl.digits.tones import SINGLE_SECONDS
from etl.sources.instructions import next_gpt
from etl.storage.schema import Medium, Sample, Turn, sha256
from etl.storage.shards import write_folder
from model.generators.media import log_mel
from model.spec.generators import AudioLdm

RNG = np.random.default_rng


@pytest.mark.parametrize("task", TASKS)
def test_held_out_requests_are_of_words_and_features_never_trained(task):
    trained, held = (
        [request(0, task, number, held_out=which) for number in range(12)]
        for which in (False, True)
    )
    spec = TASKS[task]
    own = {(verb, words) for verb, words in zip(spec.verbs, spec.wordings, strict=True)}
    for one, which in [(one, False) for one in trained] + [(one, True) for one in held]:
        pair = next(
            (verb, words)
            for verb in spec.verbs
            for words in spec.wordings
            if one.text == f"{verb} {words.format(**one.features)}"
        )
        assert (pair in own) == which
    if "{colour}" in spec.wordings[0]:  # else there is one feature, and nothing to combine
        seen = {tuple(one.features.items()) for one in trained}
        assert not seen & {tuple(one.features.items()) for one in held}
    assert request(0, task, 3, held_out=True) == held[3]


def test_lists_are_read_as_next_gpts(tmp_path):
    run(["--output", str(tmp_path), "--captions", "0", "--dialogues", "0", "--questions", "0",
         "--requests", "8"])  # fmt: skip
    sizes = {"generation_captions.json": 32, "requests.json": 48, "held_out_requests.json": 6}
    for name, size in sizes.items():
        records = json.loads((tmp_path / name).read_bytes())
        assert len(records) == size
        for record in records:
            [read] = next_gpt(record)
            captions = json.loads(read.lineage["captions"])
            assert len(captions) == len(read.media)
            asked = record.get("task")
            assert bool(captions[-1]) == (asked is not None)
            for medium in read.media:
                path = medium.url.partition("/generation/")[2]
                assert (tmp_path / "media" / "generation" / path).stat().st_size


def test_captions_match_the_features():
    for kind, wording in CAPTIONS.items():
        one = captioned(1, kind, 2)
        assert one.text == one.caption == wording.format(**one.features)
    assert "one" in heard(1, 2)[1]


@pytest.mark.parametrize("task", ["text_to_image", "text_to_audio", "text_to_video"])
def test_judges_accept_real_media_and_no_other_features(task):
    real, wrong = [], []
    for number in range(20 if task == "text_to_image" else 8):
        one = request(0, task, number, held_out=True)
        seen = judges.judge(one.target.kind, one.target.data, one.features)
        real.append(all(seen.values()))
        other = request(0, task, number + 1, held_out=True).features
        if any(other[name] != one.features[name] for name in seen):
            found = judges.judge(one.target.kind, one.target.data, other)
            wrong.append(all(found.values()))
    assert np.mean(real) >= 0.95
    assert wrong
    assert not any(wrong)


def test_judges_see_nothing_in_nothing():
    blank = generation._png(np.full((24, 24, 3), 20, np.uint8))
    assert judges.judge("image", blank, {"digit": "0"}) == {"digit": False}
    noise = RNG(0).standard_normal(3200).astype(np.float32) / 10
    assert judges.digit_of_sound(tones.encode(noise, "audio/wav")) is None


def test_replies_are_judged_by_task(tmp_path, capsys):
    made = request(0, "text_to_audio", 0, held_out=True)
    medium = Medium(kind="audio", data=made.target.data, mime="audio/wav", sha256=sha256(b""))
    lineage = {"task": "text_to_audio", **made.features}
    samples = [
        Sample(id=name, source="digits", turns=_turns(made.text), media=(medium,), lineage=lineage)
        for name in ("right", "none")
    ]
    write_folder(tmp_path / "shards", samples, job="digits", plan={})
    replies = tmp_path / "replies"
    replies.mkdir()
    (replies / "a.wav").write_bytes(made.target.data)
    lines = [{"id": "right", "text": "<audio>", "media": [{"kind": "audio", "file": "a.wav"}]}]
    args = ["--requests", str(tmp_path / "shards"), "--replies", str(replies)]
    (replies / "replies.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="no reply to none"):
        judges.run(args)
    lines.append({"id": "none", "text": "no", "media": []})
    (replies / "replies.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    judges.run(args)
    scores = json.loads((replies / "scores.json").read_bytes())
    assert scores == {"text_to_audio": {"requests": 2, "judged": 0.5, "digit": 0.5}}
    judges.run(args[:2])  # the requests' own media
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["text_to_audio"]["judged"] == 1


def test_a_reward_is_1_for_a_medium_that_shows_what_was_asked_for():
    asked, other = (request(0, "text_to_image", number, held_out=False) for number in (0, 1))
    assert asked.features != other.features
    lineage = {"task": "text_to_image", **asked.features}
    sample = Sample(id="asked", source="digits", turns=_turns(asked.text), lineage=lineage)

    def reward(*files):
        media = tuple(
            Medium(kind=file.kind, data=file.data, mime="", sha256=sha256(file.data))
            for file in files
        )
        return judges.fulfilled(SimpleNamespace(sample=sample, media=media))

    sound = request(0, "text_to_audio", 0, held_out=False).target
    assert reward(asked.target) == reward(sound, asked.target) == 1.0
    assert reward(other.target) == reward(sound) == reward() == 0.0
    sample = replace(sample, lineage={})
    with pytest.raises(ValueError, match="is no request of the digits world"):
        reward(asked.target)


def _turns(text):
    return (Turn(role="user", text=text), Turn(role="assistant", text="<audio>"))


def test_spectrograms_are_those_of_the_generators_class():
    spec = AudioLdm(seconds=SINGLE_SECONDS, vae_widths=(8, 16, 32))
    wave = RNG(1).standard_normal(7000) * np.hanning(7000)
    ours = log_mel(torch.from_numpy(wave.astype(np.float32)), spec)[0].numpy()
    np.testing.assert_allclose(sounds.log_mel(wave), ours, atol=2e-3)
