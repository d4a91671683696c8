"""Samples in the formats of other libraries: webdataset's archives, datasets' parquet, and files.

A pair (one medium, then its text) has its text as such; every other sample has its turns as
`messages` of `{role, content}`, with a placeholder for each medium, and its media in the lists
`images`, `videos`, `audios` and `points`, as LLaMA-Factory, ms-swift and TRL have them. `id`,
`source`, `scores` and `lineage` are kept.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from etl.storage.atomic import atomic_file
from etl.storage.schema import PLACEHOLDERS, THUMB, Medium, Sample, Turn, unescape

ExportFormat = Literal["webdataset", "parquet", "folder"]

_EXTENSIONS = {
    **{"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp", "image/gif": "gif"},
    **{"video/mp4": "mp4", "video/webm": "webm", "video/quicktime": "mov", "video/mp2t": "ts"},
    **{"video/x-msvideo": "avi", "video/x-matroska": "mkv", "video/mpeg": "mpg"},
    **{"audio/wav": "wav", "audio/flac": "flac", "audio/ogg": "ogg", "audio/mpeg": "mp3"},
    **{"audio/mp4": "m4a", "audio/aac": "aac"},
    **{"application/x-npy": "npy", "model/ply": "ply", "model/off": "off", "model/obj": "obj"},
}
"""MIME type of a stored medium → the suffix of its file."""

_GROUP_BYTES = 64 << 20
_GROUP_ROWS = 1000
_LISTS = {"image": "images", "video": "videos", "audio": "audios", "points": "points"}
_FEATURES = {"image": "Image", "video": "Video", "audio": "Audio"}
"""Kind → the feature of `datasets` that decodes it (https://huggingface.co/docs/datasets)."""

_CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def pair_kind(turns: Sequence[Turn], kinds: Sequence[str]) -> str | None:
    """The kind of the medium if turns are a pair: one placeholder, then its text; else None."""
    if len(kinds) != 1 or [turn.role for turn in turns] != ["user", "assistant"]:
        return None
    return kinds[0] if turns[0].text.strip() == PLACEHOLDERS[kinds[0]] else None


def suffix(medium: Medium) -> str:
    """The suffix of a medium's file, without its dot."""
    return _EXTENSIONS.get(medium.mime, medium.mime.rpartition("/")[2] or "bin")


def _facts(sample: Sample) -> dict[str, Any]:
    return {
        **{"id": sample.id, "source": sample.source},
        **{"scores": dict(sample.scores), "lineage": dict(sample.lineage)},
    }


def _messages(turns: Iterable[Turn]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def _dialogue(sample: Sample) -> dict[str, Any]:
    thumb = sample.lineage.get(THUMB)
    if thumb:
        turns = (*sample.turns, *sample.rejected)
        return {"messages": _messages(turns), THUMB: thumb == "true"}
    more = {"rejected": _messages(sample.rejected), "feedback": _messages(sample.feedback)}
    return {
        "messages": _messages(sample.turns),
        **{name: turns for name, turns in more.items() if turns},
    }


def _text(sample: Sample) -> str:
    return unescape(sample.turns[-1].text)


def write_archive(path: Path, samples: Iterable[Sample], first: int, kind: str | None) -> None:
    """Write a tar archive as webdataset has them: `KEY.jpg`, `KEY.txt` and `KEY.json` per sample.

    Of several media, the suffixes are `0.jpg`, `1.jpg` and so on.

    Args:
        path: the file, which appears complete or not at all.
        samples: the samples.
        first: the number of the first, from which keys are made.
        kind: the kind of medium if all samples are pairs, or None.
    """
    with atomic_file(path) as stream, tarfile.open(fileobj=stream, mode="w") as archive:
        for number, sample in enumerate(samples, first):
            key = f"{number:09d}"
            several = len(sample.media) > 1
            for index, medium in enumerate(sample.media):
                _add(
                    archive, f"{key}.{f'{index}.' if several else ''}{suffix(medium)}", medium.data
                )
            facts = _facts(sample)
            if kind:
                _add(archive, f"{key}.txt", _text(sample).encode())
            else:
                facts |= _dialogue(sample)
            _add(archive, f"{key}.json", json.dumps(facts, ensure_ascii=False).encode())


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def write_parquet(path: Path, samples: Iterable[Sample], first: int, kind: str | None) -> None:
    """Write parquet that `datasets` loads with its features; see `write_archive`."""
    schema = _schema(kind)
    with atomic_file(path) as stream, pq.ParquetWriter(stream, schema) as writer:
        for group in _groups(samples):
            rows = [_row(sample, first + number, kind) for number, sample in enumerate(group)]
            first += len(rows)
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _groups(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Samples of a row group, bounded by the bytes of their media."""
    group: list[Sample] = []
    size = 0
    for sample in samples:
        group.append(sample)
        size += sum(len(medium.data) for medium in sample.media)
        if size >= _GROUP_BYTES or len(group) == _GROUP_ROWS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _schema(kind: str | None) -> pa.Schema:
    """The columns, and how `datasets` decodes them."""
    text: dict[str, Any] = {"dtype": "string", "_type": "Value"}
    turns = [{"role": text, "content": text}]
    fields: list[tuple[str, pa.DataType, Any]] = [("id", pa.string(), text)]
    if kind:
        fields += [(kind, _CELL, _feature(kind)), ("text", pa.string(), text)]
    else:
        fields += [(name, _MESSAGES, turns) for name in ("messages", "rejected", "feedback")]
        fields.append((THUMB, pa.bool_(), {"dtype": "bool", "_type": "Value"}))
        fields += [(name, pa.list_(_CELL), [_feature(one)]) for one, name in _LISTS.items()]
    fields += [(name, pa.string(), text) for name in ("source", "scores", "lineage")]
    features = {name: feature for name, _, feature in fields}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([(name, kind) for name, kind, _ in fields], metadata=metadata)


def _feature(kind: str) -> dict[str, Any]:
    if kind in _FEATURES:
        return {"_type": _FEATURES[kind]}
    return {
        "bytes": {"dtype": "binary", "_type": "Value"},
        "path": {"dtype": "string", "_type": "Value"},
    }


def _row(sample: Sample, number: int, kind: str | None) -> dict[str, Any]:
    cells: dict[str, list[dict[str, Any]]] = {name: [] for name in _LISTS.values()}
    for index, medium in enumerate(sample.media):
        name = f"{number:09d}{f'.{index}' if len(sample.media) > 1 else ''}.{suffix(medium)}"
        cells[_LISTS[medium.kind]].append({"bytes": medium.data, "path": name})
    facts = _facts(sample)
    for name in ("scores", "lineage"):
        facts[name] = json.dumps(facts[name], ensure_ascii=False)
    if kind:
        return {**facts, kind: cells[_LISTS[kind]][0], "text": _text(sample)}
    return {**facts, **_dialogue(sample), **cells}


def write_files(folder: Path, samples: Iterable[Sample], first: int, kind: str | None) -> None:
    """Write media as files, and `metadata.jsonl` with a row per sample, last; see `write_archive`.

    `datasets`' imagefolder, audiofolder and videofolder load such folders of pairs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / "metadata.jsonl") as lines:
        for number, sample in enumerate(samples, first):
            names: dict[str, list[str]] = {}
            for index, medium in enumerate(sample.media):
                several = f".{index}" if len(sample.media) > 1 else ""
                name = f"{number:09d}{several}.{suffix(medium)}"
                (folder / name).write_bytes(medium.data)
                names.setdefault(medium.kind, []).append(name)
            facts = _facts(sample)
            if kind:
                row = {"file_name": names[kind][0], "text": _text(sample), **facts}
            else:
                lists = {_LISTS[one]: found for one, found in names.items()}
                row = {**_dialogue(sample), **lists, **facts}
            lines.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
