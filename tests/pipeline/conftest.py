"""Fixtures of several tests: small real models, tokenizers and shards."""

import os
import socket
from collections.abc import Iterator

import pytest
import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from etl.storage.shards import ShardSet
from model.build import build_tokenizer
from model.presets import system
from model.spec import ModelSpec
from tests.judge_endpoint import JudgeEndpoint, judge_endpoint
from tests.worlds import caption_shards


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    return system("digits").model


@pytest.fixture
def tokenizer(spec: ModelSpec) -> PreTrainedTokenizerBase:
    return build_tokenizer(spec, weights="pretrained")


@pytest.fixture(scope="session")
def captions(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet([caption_shards(tmp_path_factory.mktemp("captions"), 40)])


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be the only rank of a process group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setitem(os.environ, "MASTER_ADDR", "127.0.0.1")
    monkeypatch.setitem(os.environ, "MASTER_PORT", str(port))
    dist.init_process_group("gloo", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def endpoint() -> Iterator[JudgeEndpoint]:
    with judge_endpoint() as endpoint:
        yield endpoint
