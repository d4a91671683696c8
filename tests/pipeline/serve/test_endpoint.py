"""The endpoint as OpenAI's own client sees it, and what else may come over HTTP."""

import http.client
import io
import json
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from etl.storage.shards import ShardSet
from pipeline.evaluate.assistant import Assistant
from pipeline.serve.completions import EndpointLimits
from pipeline.serve.engine import Engine, EngineLimits
from pipeline.serve.models import load_models
from tests.runs import random_run
from tests.served import listening, picture, question

BODY = 200_000
LIMITS = EndpointLimits(body=BODY)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve") / "toy"
    random_run(folder, "digits")
    return folder


@pytest.fixture(scope="module")
def engine(run):
    with Engine(load_models([run]), EngineLimits(batch=8, waiting=8)) as engine:
        yield engine


@pytest.fixture(scope="module")
def address(engine):
    with listening(engine, limits=LIMITS) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def chat(client, text: str = "What is it", *, image: int = 0, **more):
    more = {"max_tokens": 12, "temperature": 0} | more
    messages = more.pop("messages", None) or question(text, picture(image))
    return client.chat.completions.create(model="toy", messages=messages, **more)


def metrics(address: str) -> dict[str, float]:
    text = httpx.get(f"{address}/metrics").text
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


def wait_until(engine: Engine, condition) -> None:
    """Wait until the engine's state meets a condition; it notifies of nothing but its events."""
    done = threading.Event()
    while not condition():
        done.wait(0.01)
    assert condition()


def test_models_and_health(client, address) -> None:
    assert [model.id for model in client.models.list()] == ["toy"]
    assert client.models.retrieve("toy").inputs == ["image"]
    with pytest.raises(openai.NotFoundError, match="not served"):
        client.models.retrieve("other")
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}


def test_an_answer_is_that_of_ask(client, run, tmp_path) -> None:
    (tmp_path / "picture.png").write_bytes(picture())
    expected = Assistant.open(run).ask(
        "What is it", image=tmp_path / "picture.png", max_new_tokens=12
    )
    answer = chat(client)
    assert answer.choices[0].message.content == expected != ""
    assert answer.choices[0].finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens <= 12


def test_a_stream_is_the_answer_in_pieces(client) -> None:
    whole = chat(client, temperature=1, seed=5, max_tokens=40)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(chat(client, temperature=1, seed=5, max_tokens=40, **options))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert len([piece for piece in pieces if piece]) > 2
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_choices_and_seeds(client) -> None:
    first = chat(client, n=3, temperature=1.0, seed=7)
    again = chat(client, n=3, temperature=1.0, seed=7)
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len({*texts}) == 3
    assert texts[0] == chat(client, temperature=1.0, seed=7).choices[0].message.content
    assert texts[0] != chat(client, temperature=1.0, seed=8).choices[0].message.content
    negative = [chat(client, temperature=1.0, seed=-1).choices[0].message.content for _ in range(2)]
    assert negative[0] == negative[1]


def test_what_else_is_in_the_batch_changes_no_bit(client) -> None:
    def ask(number: int):
        options = {"temperature": 1.0, "seed": number, "max_tokens": 8 + 6 * number}
        answer = chat(client, "Why " * (1 + number), image=number, logprobs=True, **options)
        return answer.choices[0].message.content, answer.choices[0].logprobs

    alone = [ask(number) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(6))) == alone


def test_stops(client) -> None:
    whole = chat(client, max_tokens=40).choices[0].message.content
    stop = whole[len(whole) // 2 :][:3]
    cut = chat(client, max_tokens=40, stop=[stop, "never"])
    assert cut.choices[0].message.content == whole[: whole.index(stop)].rstrip()
    assert cut.choices[0].finish_reason == "stop"
    stream = chat(client, max_tokens=40, stop=stop, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == cut.choices[0].message.content


def test_logprobs(client) -> None:
    [choice] = chat(client, logprobs=True, top_logprobs=3).choices
    tokens = choice.logprobs.content
    assert len(tokens) >= 2
    for token in tokens:
        logprobs = [top.logprob for top in token.top_logprobs]
        assert len(logprobs) == 3
        assert sorted(logprobs, reverse=True) == logprobs
        assert token.logprob == logprobs[0] <= 0  # greedy
    assert "".join(token.token for token in tokens).strip().startswith(choice.message.content[:5])
    assert chat(client).choices[0].logprobs is None


def test_a_dialogue_remembers(client) -> None:
    messages = [*question("What is it", picture()), {"role": "assistant", "content": "a 7"}]
    messages.append({"role": "user", "content": "Which colour"})
    answer = chat(client, messages=messages)
    assert answer.usage.prompt_tokens > chat(client).usage.prompt_tokens
    other = [messages[0], {"role": "assistant", "content": "a red"}, messages[2]]
    logprobs = [
        chat(client, messages=each, logprobs=True).choices[0].logprobs for each in (messages, other)
    ]
    assert logprobs[0] != logprobs[1]


def test_a_dialogue_becomes_a_shard(address, tmp_path) -> None:
    answer = {"role": "assistant", "content": "a 7"}
    messages = [*question("What is it", picture()), answer]
    response = httpx.post(f"{address}/v1/dialogues", json={"messages": messages})
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        archive.extractall(tmp_path)
    [sample] = ShardSet([tmp_path / "dialogue"])
    assert [turn.text for turn in sample.turns] == ["<image>\nWhat is it", "a 7"]
    assert sample.media[0].data == picture()
    refused = httpx.post(f"{address}/v1/dialogues", json={"messages": messages[:1]})
    assert "the last message is not the assistant's" in refused.json()["error"]["message"]


BAD = {
    "no JSON": (b"{", "the body is not JSON"),
    "a list": (b"[]", "the body is not a JSON object"),
    "deep": (b"[" * 100_000, "the body is not JSON"),
    "no model": ({"model": None}, "model: missing"),
    "another model": ({"model": "tox"}, "did you mean 'toy'"),
    "no messages": ({"messages": []}, "messages: 0 messages, want 1 to"),
    "a number": ({"messages": [3]}, "messages[0]: want an object"),
    "a role": ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role: 'tool'"),
    "the answer": ({"messages": [{"role": "assistant", "content": "x"}]}, "want the user's"),
    "hot": ({"temperature": 9}, "temperature: '9', want a number from 0 to 2"),
    "true": ({"n": True}, "n: 'True', want a whole number from 1 to 16"),
    "many": ({"n": 17}, "n: '17', want a whole number from 1 to 16"),
    "a typo": ({"temprature": 1}, "did you mean 'temperature'"),
    "tools": ({"tools": [{"type": "function"}]}, "tools: not supported"),
    "long": ({"max_tokens": 10**6}, "512 positions"),
    "no image": ({"messages": question("x", b"no image")}, "image cannot be decoded"),
    "stops": ({"stop": [""]}, "stop: want at most 4 texts, none empty"),
    "half a pair": (
        {"messages": [{"role": "user", "content": "\ud800"}]},
        "messages[0].content: \\ud800 is no character",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_request_is_refused_in_one_line(case, address) -> None:
    change, message = BAD[case]
    if isinstance(change, dict):
        body = {"model": "toy", "messages": [{"role": "user", "content": "x"}]} | change
        change = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{address}/v1/chat/completions", content=change, headers=headers)
    assert response.status_code in (400, 404)
    error = response.json()["error"]
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "/etc/passwd", "http://127.0.0.1:1/x", "data:image/png;base64,%"]
)
def test_no_path_and_no_url_is_read(url, client) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    with pytest.raises(openai.BadRequestError, match=r"messages\[0\].content\[0\].image_url.url"):
        chat(client, messages=[{"role": "user", "content": [part]}])


def test_bodies_have_a_limit_and_a_type(address) -> None:
    path = f"{address}/v1/chat/completions"
    headers = {"Content-Type": "application/json"}
    large = httpx.post(path, content=b" " * (BODY + 1), headers=headers)
    assert (large.status_code, large.json()["error"]["message"]) == (
        413,
        f"a body of more than {BODY} bytes",
    )
    assert httpx.post(path, content=b"{}").status_code == 415
    assert httpx.get(path).status_code == 405


def test_clients_that_hang_up_free_their_places(client, address, engine) -> None:
    before = engine.counts["cancelled"]
    body = {"model": "toy", "messages": question("Why", picture()), "max_tokens": 300, "n": 2}
    body |= {"temperature": 2.0, "stream": True, "logit_bias": {}}
    for stream in (True, False):
        connection = http.client.HTTPConnection(urlsplit(address).netloc)
        text = json.dumps(body | {"stream": stream})
        connection.request(
            "POST", "/v1/chat/completions", text, {"Content-Type": "application/json"}
        )
        if stream:
            connection.getresponse().readline()
        else:
            wait_until(engine, lambda: engine.running)
        connection.close()
        wait_until(engine, lambda: not engine.running and not engine.waiting)
    assert engine.counts["cancelled"] > before
    assert chat(client).choices[0].message.content


def test_too_many_and_too_slow_are_refused(engine, client) -> None:
    limits = EndpointLimits(seconds=0.05)
    body = {"model": "toy", "messages": question("Why", picture()), "max_tokens": 300}
    with listening(engine, limits=limits) as address:
        slow = httpx.post(f"{address}/v1/chat/completions", json=body | {"n": 8})
    assert (slow.status_code, slow.json()["error"]["message"]) == (
        408,
        "not complete after 0.05 seconds",
    )
    with listening(engine, limits=EndpointLimits(requests=0)) as address:
        refused = httpx.post(f"{address}/v1/chat/completions", json=body)
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    with pytest.raises(openai.RateLimitError):  # all choices or none
        chat(client, n=9)
    wait_until(engine, lambda: not engine.running)


def test_a_token_is_wanted(engine) -> None:
    with listening(engine, token="secret") as address:
        for key, right in (("secret", True), ("other", False)):
            client = openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0)
            with client:
                if right:
                    assert chat(client).choices
                else:
                    with pytest.raises(openai.AuthenticationError, match="Bearer TOKEN"):
                        chat(client)
        assert httpx.get(f"{address}/metrics").status_code == 401
        assert httpx.get(f"{address}/health").status_code == 200


def test_another_host_is_refused(engine) -> None:
    with listening(engine, hosts=["127.0.0.1"]) as address:
        assert httpx.get(f"{address}/health").status_code == 200
        response = httpx.get(f"{address}/health", headers={"Host": "rebound.example"})
    assert response.status_code == 400


def test_metrics_count(client, address) -> None:
    before = metrics(address)
    answer = chat(client)
    after = metrics(address)
    for name, value in (
        ("mmloom_tokens_total", answer.usage.completion_tokens),
        ("mmloom_prompt_tokens_total", answer.usage.prompt_tokens),
    ):
        assert after[name] - before[name] == value
    assert after["mmloom_running"] == after["mmloom_waiting"] == 0
    text = httpx.get(f"{address}/metrics").text
    assert 'mmloom_requests_total{model="toy",status="200"}' in text
    assert 'mmloom_first_token_seconds_bucket{le="0.01",model="toy"}' in text


def test_urls_are_fetched_by_safe_http_if_at_all(engine) -> None:
    def fetch(url: str) -> bytes:
        assert url == "https://example.org/digit.png"
        return picture()

    part = {"type": "image_url", "image_url": {"url": "https://example.org/digit.png"}}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "What is it"}]}]
    with (
        listening(engine, fetch=fetch) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client,
    ):
        fetched = chat(client, messages=messages)
        assert fetched.choices[0].message == chat(client).choices[0].message
