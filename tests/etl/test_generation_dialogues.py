"""T2M and MosIT from files: placeholders, captions and media of both parties' turns are kept."""

import json
from pathlib import Path

from etl.storage.shards import ShardSet
from tests.generation_files import SUFFIXES, dialogues


def test_captions_and_targets_survive_the_job(tmp_path: Path) -> None:
    t2m, mosit = (ShardSet([folder]) for folder in dialogues(tmp_path, tuple(SUFFIXES)))
    found = [t2m[row] for row in range(len(t2m))]
    assert {sample.media[0].kind for sample in found} == set(SUFFIXES)
    for sample in found:
        kind = sample.media[0].kind
        assert [turn.role for turn in sample.turns] == ["user", "assistant"]
        assert sample.turns[1].text == f"Here it is. <{kind}>"
        assert json.loads(sample.lineage["captions"]) == [f"{kind} of a digit"]
    for row in range(len(mosit)):
        sample = mosit[row]
        kind = sample.media[0].kind
        roles = [turn.role for turn in sample.turns if f"<{kind}>" in turn.text]
        assert roles == ["user", "assistant"]
        captions = json.loads(sample.lineage["captions"])
        assert captions == ["what is shown", "what is generated"]
        shown, generated = sample.media
        assert shown.sha256 != generated.sha256
