"""Continuous batching: answers are those of one request alone, for every kind of backbone."""

import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from etl.digits.records import pair_sample
from etl.storage.schema import Sample, Turn
from model.spec import Lora
from model.spec.peft import Adapter, Prefix, QLora
from pipeline.checkpoint.checkpoints import newest_weights, write_weights
from pipeline.evaluate.generate_answers import generate_answers
from pipeline.generate.replies import GenerationSettings
from pipeline.serve.decoding import decodes_in_batches
from pipeline.serve.engine import Engine, EngineLimits, QueueFullError
from pipeline.serve.jobs import Done, Failed, Job, JobSettings, Piece
from pipeline.serve.models import load_models
from tests.runs import random_run

TEXTS = ("What is it", "Why", "Which of the two is it, and what colour has the other one")


class Sink:
    """Collects the events of a job."""

    def __init__(self) -> None:
        self.events = []
        self._ended = threading.Event()

    def __call__(self, event) -> None:
        self.events.append(event)
        if isinstance(event, Done | Failed):
            self._ended.set()

    @property
    def logprobs(self) -> tuple[float, ...]:
        pieces = [event for event in self.events if isinstance(event, Piece)]
        return tuple(token.chosen.logprob for piece in pieces for token in piece.logprobs)

    @property
    def end(self):
        assert self._ended.wait(120)
        return self.events[-1]


def asked(kinds: tuple[str, ...], number: int, text: str) -> Sample:
    """Return a question about a picture, for models that see; else one without."""
    sees = "image" in kinds
    turns = (
        Turn(role="user", text=f"<image>\n{text}" if sees else text),
        Turn(role="assistant", text=""),
    )
    media = (pair_sample(0, number).media[0],) if sees else ()
    return Sample(id="asked", source="", turns=turns, media=media)


def job(engine: Engine, name: str, sample: Sample, sink: Sink, **settings) -> Job:
    served = engine.models[name]
    example = served.encoder.encode_prompt(sample, asks_for_media=served.generates_media)
    generation = GenerationSettings(**{"max_new_tokens": 8, "steps": 2} | settings)
    job_settings = JobSettings(generation=generation, logprobs=0)
    return Job(model=name, example=example, settings=job_settings, on_event=sink)


@pytest.mark.parametrize(
    ("preset", "together"),
    [
        ("blip_2", True),
        ("blip_2_flan_t5_xxl", False),
        pytest.param("qwen_vl", True, marks=pytest.mark.nightly),
        pytest.param("flamingo_3b", False, marks=pytest.mark.nightly),
        pytest.param("cogvlm", False, marks=pytest.mark.nightly),
        pytest.param("x_llm", False, marks=pytest.mark.nightly),
    ],
)
def test_answers_are_those_of_generate(preset, together, tmp_path) -> None:
    config = random_run(tmp_path / preset, preset)
    models = load_models([tmp_path / preset])
    served = models[preset]
    assert decodes_in_batches(served.module) == together
    samples = [asked(config.system.model.modalities, n, text) for n, text in enumerate(TEXTS)]
    with torch.no_grad():
        expected = [generated(served, sample) for sample in samples]
    sinks, alone = ([Sink() for _ in samples] for _ in range(2))
    with Engine(models) as engine:
        engine.submit([job(engine, preset, *pair) for pair in zip(samples, sinks, strict=True)])
        assert [sink.end.text for sink in sinks] == expected
        for pair in zip(samples, alone, strict=True):
            engine.submit([job(engine, preset, *pair)])
            assert pair[1].end
    logprobs = [sink.logprobs for sink in sinks]
    assert logprobs == [sink.logprobs for sink in alone]
    assert len({*logprobs}) == len(samples)


def generated(served, sample: Sample) -> str:
    """Return the answer of transformers' own `generate`."""
    [answer] = generate_answers(
        served.module, served.tokenizer, served.encoder, [sample], max_new_tokens=8
    )
    return answer.answer


def test_answers_hold_media(tmp_path) -> None:
    random_run(tmp_path / "any", "minigpt_5", signals=16.0)
    models = load_models([tmp_path / "any"])
    texts = [*TEXTS, "a red 7", "x"]
    samples = [asked((), number, text) for number, text in enumerate(texts)]

    def answers(engine: Engine, which) -> list[Done]:
        sinks = [Sink() for _ in which]
        engine.submit(
            [
                job(engine, "any", samples[n], sink, max_new_tokens=12, temperature=1.0, seed=n)
                for n, sink in zip(which, sinks, strict=True)
            ]
        )
        return [sink.end for sink in sinks]

    with Engine(models) as engine:
        together = answers(engine, range(len(samples)))
        alone = [answers(engine, [number])[0] for number in range(len(samples))]
    assert sum(len(end.media) for end in together) > 1
    for end, other in zip(together, alone, strict=True):
        assert end.text == other.text
        assert end.text.count("<image>") == len(end.media) == len(other.media)
        for medium, same in zip(end.media, other.media, strict=True):
            assert torch.equal(medium.values, same.values)


LORA = Lora(rank=4, alpha=8)


@pytest.mark.parametrize(
    "peft",
    [
        LORA,
        Prefix(length=3, hidden=8),
        pytest.param(Adapter(bottleneck=4), marks=pytest.mark.nightly),
        pytest.param(replace(LORA, use_rslora=True, use_dora=True), marks=pytest.mark.nightly),
        pytest.param(QLora(rank=4, alpha=8), marks=pytest.mark.nightly),
    ],
    ids=lambda peft: peft.kind,
)
def test_runs_of_one_base_share_it(peft, tmp_path) -> None:
    names = ("first", "second", "apart")
    trainable = (f"backbone.*{peft.parameter_marker}*", "inputs.*.projector.*")
    for name in names:
        preset = "digits_points" if name == "apart" else "digits"
        random_run(tmp_path / name, preset, peft=peft, trainable=trainable)
    change_weights(tmp_path / "second")
    models = load_models([tmp_path / name for name in names])
    first, second, apart = (models[name].module for name in names)
    assert first is second is not apart
    samples = [asked(("image",), n, text) for n, text in enumerate(TEXTS)]
    expected = {}
    for name in names[:2]:
        [own] = load_models([tmp_path / name]).values()
        expected[name] = [generated(own, sample) for sample in samples]
    assert expected["first"] != expected["second"]
    with Engine(models) as engine:
        sinks = {name: [Sink() for _ in samples] for name in names[:2]}
        for number, sample in enumerate(samples):
            engine.submit([job(engine, name, sample, sinks[name][number]) for name in sinks])
        found = {name: [sink.end.text for sink in own] for name, own in sinks.items()}
    assert found == expected


def change_weights(folder) -> None:
    """Give a run other trained weights."""
    weights = load_file(newest_weights(folder))
    write_weights(folder, {name: each.flip(0) for name, each in weights.items()}, identity={})


def test_the_cache_is_bounded_and_the_queue_too(tmp_path) -> None:
    random_run(tmp_path / "toy", "digits")
    models = load_models([tmp_path / "toy"])
    sample = asked(("image",), 0, "What is it")
    length = len(models["toy"].encoder.encode_prompt(sample).ids)
    limits = EngineLimits(batch=8, waiting=3, positions=2 * (length + 40))
    seen = []

    class Watching(Sink):
        def __call__(self, event) -> None:
            seen.append(engine.running)
            super().__call__(event)

    with Engine(models, limits) as engine:
        sinks = [Watching() for _ in range(6)]
        jobs = [job(engine, "toy", sample, sink, max_new_tokens=40) for sink in sinks]
        engine.submit(jobs[:3])
        with pytest.raises(QueueFullError):
            engine.submit(jobs[2:])
        assert all(isinstance(sink.end, Done) for sink in sinks[:3])
        assert max(seen) == 2
        with pytest.raises(ValueError, match="want a shorter prompt"):
            engine.submit([job(engine, "toy", sample, Sink(), max_new_tokens=2 * length + 200)])
        last = Watching()
        engine.submit([job(engine, "toy", sample, last, max_new_tokens=40)])
    assert isinstance(last.end, Failed | Done)


def test_an_error_hits_its_own_request_alone(tmp_path) -> None:
    random_run(tmp_path / "toy", "digits")
    models = load_models([tmp_path / "toy"])
    sample = asked(("image",), 0, "What is it")
    with Engine(models) as engine:
        bad, good = Sink(), Sink()
        broken = job(engine, "toy", sample, bad)
        broken.example.media[0].input_values.resize_(1)
        engine.submit([broken, job(engine, "toy", sample, good)])
        assert isinstance(bad.end, Failed)
        assert good.end.text
        assert engine.counts["failed"] == 1
