"""Answers graded by a language model behind an address, with recorded replies."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from etl.cli import UserError
from pipeline.evaluate.score import score
from tests.pipeline.evaluate.benchmarks.test_official_figures import write

RECORDED = Path(__file__).parent / "benchmarks" / "recorded"


class Endpoint:
    """An OpenAI-compatible server: replies by what the question contains, and keeps requests."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.replies: dict[str, list[str]] = {}
        self.status = 200
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                request = json.loads(self.rfile.read(length)) | {"path": self.path}
                endpoint.requests.append(request)
                text = request["messages"][-1]["content"]
                key = next(key for key in endpoint.replies if key in text)
                reply = endpoint.replies[key].pop(0)
                message = {"role": "assistant", "content": reply}
                body = json.dumps({"choices": [{"message": message}]}).encode()
                self.send_response(endpoint.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, args=(0.01,))
    thread.start()
    yield endpoint
    endpoint.server.shutdown()
    thread.join()
    endpoint.server.server_close()


@pytest.mark.parametrize("name", ["llava_bench", "mmvet"])
def test_recorded_replies_give_the_official_scores(
    name: str, endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((RECORDED / f"{name}.json").read_text())
    write(tmp_path, record["files"])
    if name == "llava_bench":
        file = "answers.jsonl"
        pairs = zip(record["answers"], record["replies"], strict=True)
        endpoint.replies = {f"{answer['text']}\n": [reply] for answer, reply in pairs}
    else:
        file = "answers.json"
        endpoint.replies = {f"{key} |": list(r) for key, r in record["replies"].items()}
    write(tmp_path, {file: record["answers"]})
    args = [name, "--predictions", str(tmp_path / file), "--data", str(tmp_path), "--json"]
    with pytest.raises(UserError, match=rf"grades the answers to {name}; want --judge or"):
        score(args)
    args += ["--judge", endpoint.address, "--judge-model", "recorded"]
    assert score(args) == 0
    found = json.loads(capsys.readouterr().out)
    for split, metrics in record["official"].items():
        assert found[split] == pytest.approx(metrics), split
    asked = len(endpoint.requests)
    assert asked == (9 if name == "llava_bench" else 15)
    assert {one["path"] for one in endpoint.requests} == {"/v1/chat/completions"}
    assert {one["model"] for one in endpoint.requests} == {"recorded"}
    # The grades are kept: scoring again asks nothing.
    assert score(args) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert len(endpoint.requests) == asked
    # The file of grades is enough by itself.
    kept = tmp_path / f"{file}.grades.jsonl"
    assert score([name, "--predictions", str(kept), "--data", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_a_refusal_of_the_judge_is_one_line(endpoint: Endpoint, tmp_path: Path) -> None:
    record = json.loads((RECORDED / "mmvet.json").read_text())
    write(tmp_path, record["files"] | {"answers.json": record["answers"]})
    endpoint.status = 401
    endpoint.replies = {"": ["no key"]}
    args = ["mmvet", "--predictions", str(tmp_path / "answers.json"), "--data", str(tmp_path)]
    with pytest.raises(UserError, match=r"chat/completions: status 401, want 200: "):
        score([*args, "--judge", endpoint.address])
