"""docs/corpora.md lists every data set of the survey's Tables 3 and 4, each with a job."""

import importlib
import re
from pathlib import Path

import pytest

from tests.etl.sources.test_formats import source_modules

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "corpora.md").read_text(encoding="utf-8")

TABLE_3 = """
ALIGN, LTIP, MS-COCO, Visual Genome, CC3M, CC12M, SBU, LAION-5B, LAION-400M, LAION-en, LAION-zh,
LAION-COCO, Flickr30k, AI Challenger Captions, COYO, Wukong, COCO Caption, WebLI, Episodic WebLI,
CC595k, RefCOCO, RefCOCO+, Visual-7W, OCR-VQA, ST-VQA, DocVQA, TextVQA, DataComp, GQA, VGQA, VQAv2,
DVQA, OK-VQA, A-OKVQA, Text Captions, Multimodal Arxiv, M3W, MMC4, Obelics, MSRVTT, WebVid, VTP,
AISHELL-1, AISHELL-2, WaveCaps, VSDial-CN
"""
TABLE_4 = """
MiniGPT-4's IT, StableLLaVA, LLaVA's IT, SVIT, LLaVAR's IT, ShareGPT4V's IT, DRESS's IT (SFT),
SoM-LLaVA's IT, VideoChat's IT, Video-ChatGPT's IT, Video-LLaMA's IT, InstructBLIP's IT,
X-InstructBLIP's IT, MIMIC-IT, PandaGPT's IT, MGVLID, M3IT, LAMM, BuboGPT's IT, mPLUG-DocOwl's IT,
T2M, MosIT, Osprey's IT, LLaVA-RLHF, DRESS's IT (RLHF), RLHF-V's IT, VLFeedback, RTVLM,
VLGuard's IT, MMViG
"""
CLOSED = ("ALIGN", "LTIP", "M3W", "VTP", "WebLI", "Episodic WebLI", "MGVLID", "MMViG")


def names(table: str) -> list[str]:
    return [name.strip() for name in table.replace("\n", " ").split(",")]


def rows(heading: str) -> dict[str, list[str]]:
    """The cells of a section's first table, by its first column."""
    section = PAGE.split(f"## {heading}", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]
    return {first: rest for first, *rest in cells}


SETS = {**rows("Table 3"), **rows("Table 4")}
OTHERS = rows("Others")


def job_formats() -> dict[str, set[str]]:
    """The names that --format takes, for every script of `etl/` that reads formats."""
    jobs = sorted(path.stem for path in (ROOT / "etl").glob("*.py") if path.stem != "__init__")
    modules = {job: importlib.import_module(f"etl.{job}") for job in jobs}
    return {job: set(one.FORMATS) for job, one in modules.items() if hasattr(one, "FORMATS")}


FORMATS = job_formats()


def test_the_survey_is_complete() -> None:
    assert list(rows("Table 3")) == names(TABLE_3)
    assert list(rows("Table 4")) == names(TABLE_4)


@pytest.mark.parametrize("name", [*SETS, *OTHERS])
def test_a_data_set_has_a_job(name: str) -> None:
    cells = SETS[name] if name in SETS else ["", *OTHERS[name]]
    found = re.fullmatch(r"`(\w+)(?: --format ([\w-]+))?`", cells[2])
    assert found, cells
    assert (ROOT / "etl" / f"{found[1]}.py").is_file()
    if found[2]:
        assert found[2] in FORMATS[found[1]]


@pytest.mark.parametrize("name", CLOSED)
def test_closed_data_sets_are_marked_as_such(name: str) -> None:
    assert "not public" in SETS[name][-1]


def test_a_withdrawn_data_set_names_its_mirror() -> None:
    assert "withdrawn" in SETS["WebVid"][-1]
    assert "TempoFunk/webvid-10M" in SETS["WebVid"][-1]


def test_every_format_has_a_data_set() -> None:
    for job, names in FORMATS.items():
        for name in names:
            assert f"`{job} --format {name}`" in PAGE, (job, name)


def test_every_format_has_a_job() -> None:
    read = {name for names in FORMATS.values() for name in names}
    assert read == {name for source in source_modules() for name in source.FORMATS}


@pytest.mark.parametrize("job", FORMATS)
def test_every_job_takes_its_formats(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"etl.{job}").run(["--help"])
    assert not stop.value.code
    text = "".join(capsys.readouterr().out.replace("│", " ").split())
    for name in FORMATS[job]:
        assert name in text
