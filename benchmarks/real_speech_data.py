"""Spoken sentences of a small grammar, by the voices of espeak-ng, and questions about them."""

from __future__ import annotations

import csv
import json
import random
import shutil
import string
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import soundfile

from etl.cli import UserError

SLOTS: Mapping[str, str] = {
    "number": "two three four five six seven eight nine ten eleven twelve"
    " twenty thirty forty fifty",
    "colour": "red green blue yellow black white orange purple brown grey",
    "city": "Paris London Berlin Madrid Rome Tokyo Moscow Vienna Boston Chicago Dublin Lisbon"
    " Cairo",
    "thing": "cars boxes horses apples bottles chairs books lamps shirts flowers stones boats",
    "room": "kitchen garden bedroom bathroom office garage cellar hall",
    "device": "lamp radio heater camera oven fan television computer",
    "name": "Anna Peter Maria David Sarah Thomas Julia Robert Emma Daniel",
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
}
"""Kind of word → the words."""
SENTENCES = (
    "{name} has {number} {colour} {thing}.",
    "We travel to {city} on {day}.",
    "Turn on the {colour} {device} in the {room}.",
    "Turn off the {device} in the {room}.",
    "{name} lives in {city}.",
    "Bring {number} {thing} to {city}.",
    "The {thing} in the {room} are {colour}.",
    "{name} will call at {number} on {day}.",
)
QUESTIONS: Mapping[str, str] = {
    "number": "Which number does the speaker say?",
    "colour": "Which colour is named?",
    "city": "Which city is named?",
    "name": "Who is spoken about?",
    "room": "Which room is named?",
    "day": "Which day is named?",
    "device": "Which device is named?",
}
TRANSCRIBE = "What does the speaker say?"
VOICES = (
    *("en-us", "en-gb", "en-us+f3", "en-gb+m3", "en-gb-scotland", "en-us+m7", "en-gb+f2"),
    "en-gb-x-rp",
)
UNHEARD = "en-us+f5"
"""The voice of no training sound."""
WORDS_PER_MINUTE = (150, 165, 180)
SECONDS = 3.0
"""What the encoder hears; a sentence that takes longer is spoken faster."""


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """A sentence with its facts (slot → word), and the file of its sound."""

    text: str
    facts: Mapping[str, str]
    file: str


def write_world(folder: Path, *, sentences: int, held_out: int) -> None:
    """Write sounds and the lists that `etl/audio.py` and `etl/instruct.py` read.

    Files: `wav/*.wav`; `pt.csv` (Clotho's columns), `sft.json` (LLaVA's format) of the training
    sentences; `heard.json` and `unheard.json` of held-out sentences, in voices of the training and
    in another one.

    Args:
        folder: to write to.
        sentences: for training.
        held_out: sentences of each held-out list.

    Raises:
        UserError: espeak-ng is not installed.
    """
    if shutil.which("espeak-ng") is None:
        raise UserError("espeak-ng: not installed; `apt-get install espeak-ng` installs it")
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    generator = random.Random(0)
    texts = list(_distinct(generator, sentences + 2 * held_out))
    bounds = {"train": sentences, "heard": sentences + held_out, "unheard": len(texts)}
    splits, start = {}, 0
    for split, end in bounds.items():
        splits[split] = [
            Spoken(text=text, facts=facts, file=f"{split}-{number:05d}.wav")
            for number, (text, facts) in enumerate(texts[start:end])
        ]
        start = end
    jobs = [
        (
            one,
            UNHEARD if split == "unheard" else generator.choice(VOICES),
            generator.choice(WORDS_PER_MINUTE),
            generator.randrange(35, 65),
        )
        for split, spoken in splits.items()
        for one in spoken
    ]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: _speak(folder / "wav", *job), jobs))
    with (folder / "pt.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file_name", "caption_1"])
        rows.writerows((one.file, one.text) for one in splits["train"])
    for name, split in (("sft", "train"), ("heard", "heard"), ("unheard", "unheard")):
        dialogues = [each for one in splits[split] for each in _dialogues(one, generator)]
        generator.shuffle(dialogues)
        (folder / f"{name}.json").write_text(json.dumps(dialogues, indent=1))


def _distinct(generator: random.Random, number: int) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield different sentences, each with its facts."""
    seen: set[str] = set()
    while len(seen) < number:
        template = generator.choice(SENTENCES)
        slots = [name for _, name, _, _ in string.Formatter().parse(template) if name]
        facts = {slot: generator.choice(SLOTS[slot].split()) for slot in slots}
        text = template.format(**facts)
        if text not in seen:
            seen.add(text)
            yield text, facts


def _speak(folder: Path, spoken: Spoken, voice: str, speed: int, pitch: int) -> None:
    """Write a sentence's sound, at most as long as the encoder hears."""
    file = folder / spoken.file
    while True:
        options = ("-v", voice, "-s", str(speed), "-p", str(pitch), "-w", str(file))
        subprocess.run(["espeak-ng", *options, spoken.text], check=True)
        if soundfile.info(file).duration <= SECONDS:
            return
        speed += 15


def _dialogues(spoken: Spoken, generator: random.Random) -> Iterator[dict[str, object]]:
    """Yield the transcript and two questions about a sentence."""
    asked = [slot for slot in spoken.facts if slot in QUESTIONS]
    pairs = [("transcript", TRANSCRIBE, spoken.text)]
    pairs += [
        (s, QUESTIONS[s], spoken.facts[s]) for s in generator.sample(asked, min(2, len(asked)))
    ]
    for kind, question, answer in pairs:
        yield {
            "id": f"{spoken.file}-{kind}",
            "audio": spoken.file,
            "kind": kind,
            "conversations": [
                {"from": "human", "value": f"<audio>\n{question}"},
                {"from": "gpt", "value": answer},
            ],
        }
