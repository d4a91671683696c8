"""Files in NExT-GPT's formats, with media of the digits world: T2M and MosIT."""

import json
from pathlib import Path

from etl.instruct import run
from etl.storage.manifest import read_manifest
from tests.worlds import generation_sample

SUFFIXES = {"image": "jpg", "video": "mp4", "audio": "flac"}
ROWS = 4


def dialogues(folder: Path, kinds: tuple[str, ...]) -> list[Path]:
    """Bring T2M and MosIT from files into shards by `etl/instruct.py`; return the shards."""
    found = []
    for name, write in (("t2m", write_t2m), ("mosit", write_mosit)):
        listing, output = write(folder / name, kinds), folder / f"{name}-shards"
        words = ["--input", listing, "--media", listing.parent, "--output", output]
        run(list(map(str, [*words, "--format", "next-gpt", "--executor", "local", "--json"])))
        assert read_manifest(output).rows == ROWS * len(kinds), read_manifest(output).drops
        found.append(output)
    return found


def _medium(folder: Path, kind: str, number: int) -> str:
    """Write a medium, and return its name."""
    folder.mkdir(parents=True, exist_ok=True)
    medium = generation_sample(0, number, kind=kind).media[0]
    name = f"{kind}-{number}.{SUFFIXES[kind]}"
    (folder / name).write_bytes(medium.data)
    return name


def write_t2m(folder: Path, kinds: tuple[str, ...]) -> Path:
    """Write text-to-media dialogues, `ROWS` of each kind; return the list."""
    rows = [
        {
            "mm_name": _medium(folder, kind, number),
            "output_modality": kind,
            "conversation": [
                {"from": "human", "value": f"Number {number}, please.", "input_modality": "text"},
                {
                    "from": "gpt",
                    "value": "Here it is.",
                    "caption": f"{kind} of a digit",
                    "output_modality": kind,
                },
            ],
        }
        for kind in kinds
        for number in range(ROWS)
    ]
    return _write(folder / "t2m.json", rows)


def write_mosit(folder: Path, kinds: tuple[str, ...]) -> Path:
    """Write dialogues with media in both parties' turns, `ROWS` of each kind; return the list."""
    rows = []
    for kind in kinds:
        for number in range(ROWS):
            shown, generated = (_medium(folder, kind, 2 * number + more) for more in (0, 1))
            tag = kind.capitalize()
            media = [
                {f"{kind}_name": shown, "caption": "what is shown"},
                {f"{kind}_name": generated, "caption": "what is generated"},
            ]
            turns = [
                {"from": "human", "value": f"This is one: <{tag}>{shown}</{tag}>. One more?"},
                {"from": "gpt", "value": f"Gladly: <{tag}>{generated}</{tag}>"},
                {"from": "human", "value": "Which was the first?"},
                {"from": "gpt", "value": f"Number {number}."},
            ]
            lists = {f"{each}_list": media if each == kind else [] for each in SUFFIXES}
            rows.append({**lists, "conversation": turns})
    return _write(folder / "mosit.json", rows)


def _write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text(json.dumps(rows))
    return path
