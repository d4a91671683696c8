"""The page of the any-to-any quickstart: what was asked for, and what was made of it."""

import base64
import json

from etl.digits.generation import TASKS, request
from etl.storage.schema import Medium, Sample, Turn, sha256
from etl.storage.shards import write_folder
from pipeline.quickstart.any_report import write_any_report

MIMES = {"image": "image/png", "audio": "audio/wav", "video": "video/mp4"}


def test_pictures_and_players_stand_under_their_requests(tmp_path):
    made = {task: request(0, task, 1, held_out=True) for task in TASKS}
    folder = tmp_path / "media" / "judged"
    folder.mkdir(parents=True)
    samples, replies = [], []
    for task, one in made.items():
        files = [file for file in (one.shown, one.target) if file is not None]
        media = tuple(
            Medium(kind=f.kind, data=f.data, mime=MIMES[f.kind], sha256=sha256(f.data))
            for f in files
        )
        shown = "".join(f"<{f.kind}>" for f in files[:-1])
        turns = (
            Turn(role="user", text=f"{shown}\n{one.text}"),
            Turn(role="assistant", text=f"<{one.target.kind}>"),
        )
        lineage = {"task": task}
        samples.append(Sample(id=task, source="digits", turns=turns, media=media, lineage=lineage))
        name = f"{task}{one.target.suffix}"
        (folder / name).write_bytes(one.target.data)
        reply = {"kind": one.target.kind, "file": name}
        replies.append({"id": task, "text": f"<{one.target.kind}>", "media": [reply]})
    (folder / "replies.jsonl").write_text("".join(json.dumps(one) + "\n" for one in replies))
    write_folder(tmp_path / "held_out_requests", samples, job="digits", plan={})
    for stage in ("pt", "sft"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "metrics.jsonl").write_text('{"step": 1, "losses": {"text": 1.0}}\n')
    figures = {"judged": 0.875, "ceiling": 1.0, "floor": 0.1}
    write_any_report(tmp_path, {"tasks": dict.fromkeys(TASKS, figures)}, [])
    page = (tmp_path / "report.html").read_text()
    assert page.count("<audio") == 3  # two replies, and a request
    assert page.count("<video") == 1
    for task, one in made.items():
        at = page.index(f">{task.replace('_', ' ')}</h2>")
        section = page[at : page.index("<h2", at + 1)]
        assert one.text in section
        assert base64.b64encode(one.target.data).decode() in section
    assert "87.5%" in page
