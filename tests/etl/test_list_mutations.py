"""Seeded mutations of every list format and of every type of column, at every job's planning.

Whatever is done to a list, a job plans rows, drops rows with a reason, or refuses the whole file
in one line: never another exception. The sample files are those of `tests/etl/formats/`. A share of
the mutations runs by default, all of them with the marker `nightly`.
"""

import contextlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import etl.audio
import etl.cc
import etl.coco
import etl.instruct
import etl.interleaved
import etl.laion
import etl.pairs
import etl.pointcloud
import etl.preference
import etl.runtime.corpus
import etl.webvid
from etl.cli import UserError
from etl.filters.base import run_filters
from etl.media.embedded import EmbeddedMedia, is_embedded
from etl.media.gather import with_media
from etl.runtime.job import Job
from etl.runtime.job_state import make_plan
from etl.sources.files import json_rows
from etl.storage.schema import Medium, Sample, Turn, to_batch
from tests.etl.sources.test_formats import EXPECTED, FILES, FORMATS

JOBS = (etl.laion, etl.cc, etl.coco, etl.webvid, etl.audio, etl.pointcloud, etl.interleaved)
JOBS += (etl.instruct, etl.preference, etl.pairs)

SEED = 20251129
PER_LIST = {False: 3, True: 120}
"""Mutations of a list, by default and nightly."""
PER_TABLE = 6
"""Columns of another type that are tried in each table by default."""


# What a mutation puts in the place of a value.
STRANGE: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**63, 10**400, 1.5, float("nan"), float("inf"), "", " "),
    *("\x00", "\ud83d"),
    *("<image>", "\\<image><video>", "../../etc/passwd", "http://", "http://[", "input:#0/image"),
    *("data:", "data:;base64,%", "input:../x", "a" * 70_000, [], {}, [[]], [None], {"": None}),
    *(["a", 1], {"bytes": "a", "path": 1}, {"from": "gpt", "value": None}, "é" * 3, "\u202e"),
)  # fmt: skip


def mutate(value: Any, rng: np.random.Generator, depth: int = 0) -> Any:
    """A parsed document with one change, somewhere: a value replaced, removed, added or doubled."""
    nested = isinstance(value, dict | list) and len(value) > 0
    if not nested or (depth and rng.random() < 0.15):
        return STRANGE[rng.integers(len(STRANGE))]
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[rng.integers(len(keys))]
    changed = value.copy()
    match rng.integers(8):
        case 0:
            del changed[key]
        case 1 if isinstance(value, dict):
            changed[f"{key}s"] = changed.pop(key)
        case 2 if isinstance(value, dict):
            changed[key] = [changed[key], changed[key]]
        case 1 | 2:
            changed.insert(int(rng.integers(len(value))), value[key])
        case _:
            changed[key] = mutate(value[key], rng, depth + 1)
    return changed


def mutate_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """A file with one change: bytes overwritten, removed, doubled, inserted, or its end cut off."""
    begin = int(rng.integers(len(data)))
    end = min(len(data), begin + int(rng.integers(1, 40)))
    noise = rng.integers(0, 256, end - begin, np.uint8).tobytes()
    match rng.integers(6):
        case 0:
            return data[:begin] + data[end:]
        case 1:
            return data[:end] + data[begin:]
        case 2:
            return data[:begin]
        case 3:
            return data[:begin] + rng.choice([b'"', b"\n", b"\t", b",", b"{", b"\0"]) + data[begin:]
        case _:
            return data[:begin] + noise + data[end:]


def mutated(file: Path, rng: np.random.Generator) -> bytes:
    """A file with one to three changes, half of them in what its JSON holds."""
    data = file.read_bytes()
    is_json = file.suffix in (".json", ".jsonl")
    for _ in range(rng.integers(1, 4)):
        if is_json and rng.random() < 0.7:
            with contextlib.suppress(ValueError):
                if file.suffix == ".jsonl":
                    rows = [json.loads(line) for line in data.splitlines() if line.strip()]
                    changed = mutate([*rows, {}], rng)
                    lines = changed if isinstance(changed, list) else [changed]
                    data = "\n".join(map(json.dumps, lines)).encode()
                else:
                    data = json.dumps(mutate(json.loads(data), rng)).encode()
                continue
        data = mutate_bytes(data or b"\n", rng)
    return data


def job_of(fmt: str) -> ModuleType:
    """The job that reads a format."""
    return next(job for job in JOBS if fmt in getattr(job, "FORMATS", ()))


def plan(job: Job) -> None:
    """Do what `run_job` does before the first download, and make samples of the rows that are kept.

    Embedded media are read, since no server is needed for it.
    """
    make_plan(job.name, job.source.files, job.options.config)
    media = EmbeddedMedia(job.media.input_folder or Path(), max_bytes=1 << 20)
    for table in job.source.read(3):
        batch = run_filters(table, job.filters)
        assert batch.kept.num_rows + batch.drops.num_rows == table.num_rows
        for row in with_media(batch.kept).to_pylist():
            found = [media.read(ref["url"]) for ref in row["media"] if is_embedded(ref["url"])]
            assert all((one.data is None) == bool(one.reason) for one in found)
            empty = {"data": b"", "mime": "", "sha256": ""}
            sample = Sample(
                id=row["id"],
                source=job.name,
                turns=tuple(Turn(**turn) for turn in row["turns"]),
                rejected=tuple(Turn(**turn) for turn in row.get("rejected") or ()),
                media=tuple(Medium(kind=ref["kind"], **empty) for ref in row["media"]),
                lineage=json.loads(row["lineage"]),
            )
            to_batch([sample])


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[ModuleType, Path], bool]:
    """Runs a job over a list as far as its plan; returns whether the list was refused in one line.

    The options are made without the command line, whose parsing is most of the time.
    """
    monkeypatch.setattr(etl.runtime.corpus, "run_job", plan)
    monkeypatch.setattr(etl.laion, "run_job", plan)

    def run(job: ModuleType, path: Path) -> bool:
        media = {} if job is etl.laion else {"media": ("http://example.com/media",)}
        options = job.Options(input=path, output=tmp_path / "out", **media)
        monkeypatch.setattr(job, "parse", lambda *_, **__: options)
        try:
            job.run([])
        except UserError as error:
            assert str(error).strip()
            return True
        return False

    return run


TIERS = [False, pytest.param(True, marks=pytest.mark.nightly)]
"""Whether a test is of the nightly tier."""


@pytest.mark.parametrize("nightly", TIERS)
@pytest.mark.parametrize("name", EXPECTED)
def test_mutated_lists_are_rows_reasons_or_one_line(
    tmp_path: Path, planned: Callable[[ModuleType, Path], bool], name: str, nightly: bool
) -> None:
    job = job_of(EXPECTED[name]["format"])
    for number in range(PER_LIST[nightly]):
        rng = np.random.default_rng((SEED, *name.encode(), nightly, number))
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        file = path
        if (FILES / name).is_dir():
            shutil.copytree(FILES / name, path)
            files = sorted(file for file in path.rglob("*") if file.is_file())
            file = files[rng.integers(len(files))]
            file.write_bytes(mutated(file, rng))
        else:
            file.write_bytes(mutated(FILES / name, rng))
        with only_user_errors(file):
            planned(job, path)
        shutil.rmtree(path.parent)


@contextlib.contextmanager
def only_user_errors(file: Path) -> Iterator[None]:
    """Show the mutated file of a failure."""
    try:
        yield
    except Exception as error:
        data = file.read_bytes() if file.is_file() else b""
        raise AssertionError(f"{file.name}: {error!r} of {data[:2000]!r}") from error


VALUES: tuple[pa.Array, ...] = (
    pa.nulls(2),
    pa.array([True, None]),
    *(pa.array([1, None], kind()) for kind in (pa.int8, pa.int64, pa.uint8, pa.uint64)),
    *(pa.array([1.5, float("nan")], kind()) for kind in (pa.float16, pa.float32, pa.float64)),
    *(pa.array([Decimal("1.5"), None], kind(20, 2)) for kind in (pa.decimal128, pa.decimal256)),
    *(pa.array(["text", None], kind()) for kind in (pa.string, pa.large_string, pa.string_view)),
    pa.array([b"text", b"\xff\xfe"], pa.binary()).view(pa.string()),
    pa.array(["text", None]).dictionary_encode(),
    *(
        pa.array([b"\xff\xd8", None], kind())
        for kind in (pa.binary, pa.large_binary, pa.binary_view)
    ),
    pa.array([b"abcd", None], pa.binary(4)),
    *(pa.array([1, None], kind) for kind in (pa.date32(), pa.time32("s"), pa.timestamp("us"))),
    *(pa.array([2**62, None], kind) for kind in (pa.timestamp("s", "UTC"), pa.duration("ms"))),
    pa.array([["a", None], []], pa.list_(pa.string())),
    pa.array([["a", None], None], pa.large_list(pa.string())),
    pa.array([["a", "b"], None], pa.list_(pa.string(), 2)),
    pa.array([[[1]], []]),
    pa.array([[b"a"], None]),
    pa.array([{"raw": "a", "n": 1}, None]),
    pa.array([{"en": "a", "de": "b"}, None]),
    pa.array([{"bytes": b"a", "path": "a.jpg"}, {"bytes": None, "path": None}]),
    pa.array([{"bytes": "a", "path": 5}, None]),
    pa.array([[{"bytes": b"a", "path": None}], [None]]),
    pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
    pa.array([[{"role": "user", "content": [{"type": "image", "image": {"bytes": b"a"}}]}], None]),
)
"""Columns of every type that parquet holds."""

ONLY_ARROW: tuple[pa.Array, ...] = (
    pa.array([["a"], None], pa.list_view(pa.string())),
    pa.array([[b"a"], None], pa.large_list_view(pa.binary())),
    pa.UnionArray.from_sparse(
        pa.array([0, 1], pa.int8()), [pa.array(["a", "b"]), pa.array([1, 2])], ["s", "n"]
    ),
    pa.RunEndEncodedArray.from_arrays(pa.array([2], pa.int32()), pa.array(["a"])),
    pa.array([(1, 2, 3), None], pa.month_day_nano_interval()),
)
"""Columns of types that only Arrow's own files hold."""


def tables() -> dict[str, tuple[ModuleType, pa.Table]]:
    """A small table for each format that is published as parquet, and the job that reads it."""
    urls = [f"http://example.com/{n}.jpg" for n in range(2)]
    laion = {"URL": urls, "TEXT": ["one", "two"], "WIDTH": [9, 9], "similarity": [0.5, 0.4]}
    more = {"language": ["en", "de"], "NSFW": ["UNSURE", None], "AESTHETIC_SCORE": [5.0, 6.0]}
    found = {"laion": (etl.laion, pa.table({**laion, **more}))}
    for name, expected in EXPECTED.items():
        fmt = expected["format"]
        if ".parquet" not in FORMATS[fmt].suffixes:
            continue
        if name.endswith(".parquet"):
            table = pq.read_table(FILES / name)
        else:
            with contextlib.suppress(pa.ArrowInvalid, pa.ArrowTypeError, UserError, TypeError):
                rows = [row for row in json_rows(FILES / name) if isinstance(row, dict)]
                table = pa.Table.from_pylist(rows)
                found[name] = (job_of(fmt), table)
            continue
        found[name] = (job_of(fmt), table)
    return found


TABLES = tables()


@pytest.mark.parametrize("nightly", TIERS)
@pytest.mark.parametrize("name", TABLES)
def test_columns_of_every_type_are_rows_reasons_or_one_line(
    tmp_path: Path, planned: Callable[[ModuleType, Path], bool], name: str, nightly: bool
) -> None:
    job, table = TABLES[name]
    cases = list(itertools.product(table.column_names, [*VALUES, *ONLY_ARROW], ("all", "one")))
    if not nightly:
        rng = np.random.default_rng((SEED, *name.encode()))
        cases = [cases[n] for n in rng.choice(len(cases), PER_TABLE, replace=False)]
    for number, (column, values, extent) in enumerate(cases):
        index = table.column_names.index(column)
        repeated = pa.concat_arrays([values] * table.num_rows).slice(0, table.num_rows)
        changed = table.set_column(index, column, repeated)
        if extent == "one":  # another column of that type
            changed = table.append_column(f"{column}_2", repeated)
        with only_user_errors(Path(f"{name} {column} {values.type} {extent}")):
            planned(job, written(tmp_path / str(number), changed))


def written(stem: Path, table: pa.Table) -> Path:
    """A table as parquet, or as Arrow's stream where parquet has no such type or value."""
    path = stem.with_name(f"{stem.name}.parquet")
    try:
        pq.write_table(table, path)
    except pa.ArrowException:
        return streamed(stem, table)
    return path


def streamed(stem: Path, table: pa.Table) -> Path:
    """A table as a stream of Arrow, as `datasets` saves it."""
    path = stem.with_name(f"{stem.name}.arrow")
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize("nightly", TIERS)
@pytest.mark.parametrize("write", [written, streamed])
@pytest.mark.parametrize("name", ["laion", "pairs.parquet"])
def test_damaged_tables_are_rows_reasons_or_one_line(
    tmp_path: Path,
    planned: Callable[[ModuleType, Path], bool],
    name: str,
    write: Callable[[Path, pa.Table], Path],
    nightly: bool,
) -> None:
    job, table = TABLES[name]
    path = write(tmp_path / "list", table)
    data = path.read_bytes()
    for number in range(PER_LIST[nightly]):
        rng = np.random.default_rng((SEED, *write.__name__.encode(), nightly, number))
        path.write_bytes(mutate_bytes(data, rng))
        with only_user_errors(path):
            planned(job, path)
