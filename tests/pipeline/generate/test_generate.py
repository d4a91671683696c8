"""Replies with generated media: text, files, seeds, and one line for mistakes."""

import json
from dataclasses import replace

import av
import numpy as np
import pytest
import soundfile
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from etl.cli import UserError
from etl.storage.schema import Sample, SampleError, Turn
from etl.storage.shards import write_folder
from model import byte_tokenizers
from model.batch_invariance import batch_invariant
from model.signal_decoding import decode
from model.spec.system import TRAINABLE_OUTPUTS
from pipeline.cli import run as run_pipeline
from pipeline.convert.export import export_run
from pipeline.data.collate import collate
from pipeline.data.encode import without_answer
from pipeline.evaluate.assistant import Assistant
from pipeline.evaluate.generate_answers import generate_answers
from pipeline.generate import GeneratedMedium, GeneratingAssistant, GenerationSettings, Reply
from pipeline.generate.answers import encode_request
from pipeline.generate.batches import GenerateWorker, SampleRange
from tests.runs import random_run
from tests.worlds import generation_sample

LONG = "a very long sentence with a lot of words" * 2
PROMPTS = ("a red 7", "7", "a long sentence of many words, " * 2, LONG, "x")
SETTINGS = GenerationSettings(steps=2, max_new_tokens=12, guidance_scale=3.0)
SIGNALS = 16.0


def asked(number: int, text: str) -> Sample:
    turns = (Turn(role="user", text=text), Turn(role="assistant", text="<image>"))
    return replace(generation_sample(0, number), id=f"asked-{number}", turns=turns)


SAMPLES = [asked(number, text) for number, text in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate") / "run"
    random_run(folder, "minigpt_5", signals=SIGNALS)
    return folder


@pytest.fixture(scope="module")
def assistant(run):
    return GeneratingAssistant.open(run)


@pytest.fixture(scope="module")
def replies(assistant):
    return assistant.replier(SETTINGS, batch=8).reply(SAMPLES)


def test_replies_hold_media_where_the_backbone_puts_them(replies) -> None:
    assert [reply.id for reply in replies] == [sample.id for sample in SAMPLES]
    assert sum(len(reply.media) for reply in replies) > 1
    assert any(not reply.media for reply in replies)
    for reply in replies:
        assert reply.text.count("<image>") == len(reply.media)
        for medium in reply.media:
            assert (medium.kind, tuple(medium.values.shape)) == ("image", (3, 32, 32))
            assert medium.values.std() > 0.02
    seeds = [medium.seed for reply in replies for medium in reply.media]
    assert len({*seeds}) == len(seeds)


def test_a_dialogue_goes_on_after_a_medium_of_an_earlier_answer(assistant, run) -> None:
    turns = (*SAMPLES[2].turns, Turn(role="user", text="<image> Like it?"), SAMPLES[2].turns[1])
    sample = replace(SAMPLES[2], turns=turns, media=SAMPLES[2].media * 3)
    other = Assistant.open(run)
    for encoder in (assistant.encoder, other.encoder):
        example = encode_request(encoder, sample, SETTINGS)
        assert example.kinds.count("to_image") == 8
        assert [medium.kind for medium in example.media] == ["image"]
    [alone] = assistant.replier(SETTINGS).reply([sample])
    *_, together = assistant.replier(SETTINGS, batch=8).reply([*SAMPLES, sample])
    assert not alone.skip_reason
    assert together.text == alone.text
    [answer] = generate_answers(
        other.load_model(),
        other.tokenizer,
        other.encoder,
        [without_answer(sample)],
        max_new_tokens=4,
    )
    assert not answer.skip_reason
    assert answer.answer


@pytest.mark.parametrize("size", [1, 3])
def test_the_batch_changes_no_bit(size, assistant, replies) -> None:
    replier = assistant.replier(SETTINGS, batch=size)
    for start in range(0, len(SAMPLES), size):
        part = replier.reply(SAMPLES[start : start + size])
        for found, expected in zip(part, replies[start : start + size], strict=True):
            assert found.text == expected.text
            for medium, other in zip(found.media, expected.media, strict=True):
                assert torch.equal(medium.values, other.values)


def test_without_signal_tokens_the_text_is_that_of_ask(tmp_path) -> None:
    random_run(tmp_path / "run", "minigpt_5", signals=0.0)
    for prompt in PROMPTS[:2]:
        found = GeneratingAssistant.open(tmp_path / "run").generate(prompt, max_new_tokens=12)
        expected = Assistant.open(tmp_path / "run").ask(prompt, max_new_tokens=12)
        assert found.text == expected != ""
        assert not found.media


def test_the_command_answers_a_prompt(run, tmp_path, capsys) -> None:
    words = ["generate", "--run", str(run), "--output", str(tmp_path), "--steps", "2"]
    options = ["--max-new-tokens", "12", "--guidance-scale", "3", "--prompt", PROMPTS[2]]
    assert run_pipeline([*words, *options]) == 0
    [line] = (tmp_path / "replies.jsonl").read_text().splitlines()
    reply = json.loads(line)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].strip() == reply["text"]
    assert reply["media"]
    for medium, told in zip(reply["media"], printed[1:], strict=True):
        assert medium["file"] in told
        picture = Image.open(tmp_path / medium["file"])
        assert (picture.format, picture.size, picture.mode) == ("PNG", (32, 32), "RGB")


def test_mistakes_are_one_line(run, tmp_path, capsys) -> None:
    def error(*words: str) -> str:
        with pytest.raises(UserError) as caught:
            run_pipeline(["generate", *words])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    of_run = ("--run", str(run))
    assert "--prompt: empty" in error(*of_run, "--prompt", " ")
    assert "either --prompt TEXT or --data" in error(*of_run)
    missing = str(tmp_path / "no.png")
    assert "no.png: cannot be read" in error(*of_run, "--prompt", "x", "--media", missing)
    assert "x.foo is of no known kind" in error(*of_run, "--prompt", "x", "--media", "x.foo")
    assert "x.wav is of kind audio" in error(*of_run, "--prompt", "x", "--media", "x.wav")
    assert "--steps: 0" in error(*of_run, "--prompt", "x", "--steps", "0")
    random_run(tmp_path / "reads", "digits")
    assert "this model has none" in error("--run", str(tmp_path / "reads"), "--prompt", "x")
    assert "no such folder" in error("--run", str(tmp_path / "nowhere"), "--prompt", "x")


def test_shards_are_answered_by_workers(run, replies, tmp_path) -> None:
    write_folder(tmp_path / "data", iter(SAMPLES), job="test", rows_per_shard=2)
    ranges = [SampleRange(number=n, start=2 * n, stop=min(5, 2 * n + 2)) for n in range(3)]
    worker = GenerateWorker(
        run, [tmp_path / "data"], tmp_path / "out", SETTINGS, batch=2, threads=None
    )
    lines = []
    for item in reversed(ranges):
        worker(item)
        lines = item.part(tmp_path / "out").read_text().splitlines() + lines
    for line, expected in zip(lines, replies, strict=True):
        found = json.loads(line)
        assert (found["id"], found["text"]) == (expected.id, expected.text)
        for medium, other in zip(found["media"], expected.media, strict=True):
            assert (medium["kind"], medium["seed"]) == (other.kind, other.seed)
            assert (tmp_path / "out" / medium["file"]).read_bytes() == other.encoded()


def test_sampling_depends_on_seeds_alone(assistant) -> None:
    settings = replace(SETTINGS, temperature=3.0, top_p=0.9)
    together = assistant.replier(settings, batch=8).reply(SAMPLES)
    alone = [assistant.replier(settings).reply([sample])[0].text for sample in SAMPLES]
    assert [reply.text for reply in together] == alone
    other = assistant.replier(replace(settings, seed=1), batch=8).reply(SAMPLES)
    assert all(a.text != b.text for a, b in zip(together, other, strict=True))


@torch.no_grad()
def test_a_drawn_picture_is_that_of_diffusers_under_our_condition(assistant, replies) -> None:
    model, encoder = assistant.load_model(), assistant.encoder
    example = encode_request(encoder, SAMPLES[2], SETTINGS)
    batch = collate([example], pad_id=assistant.tokenizer.pad_token_id, side="left", multiple=16)
    branch = model.output_branches()["to_image"]
    with batch_invariant(model):
        options = {"pad_id": 0, "end_ids": encoder.stop_ids}
        found = decode(model, batch, max_new_tokens=SETTINGS.max_new_tokens, **options)
        negative = branch.projector(torch.zeros(1, 8, model.spec.backbone.width))
    generator = branch.generator
    pipe = StableDiffusionPipeline(
        vae=generator.vae,
        text_encoder=generator.text.text_encoder,
        tokenizer=byte_tokenizers.clip_style(),
        unet=generator.unet,
        scheduler=DDIMScheduler.from_config(generator.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    media = replies[2].media
    assert len(found.media) == len(media) == 2
    with batch_invariant(pipe.unet), batch_invariant(pipe.vae):
        drawn = pipe(
            prompt_embeds=torch.cat([medium.condition_1lw for medium in found.media]),
            negative_prompt_embeds=negative.expand(2, -1, -1),
            generator=[torch.Generator().manual_seed(medium.seed) for medium in media],
            num_inference_steps=SETTINGS.steps,
            guidance_scale=SETTINGS.guidance_scale,
            output_type="pt",
        ).images
    assert torch.equal(drawn, torch.stack([medium.values for medium in media]))
    assert (drawn[0] - drawn[1]).abs().max() > 0.02


@torch.no_grad()
def test_conditions_are_those_of_training(assistant) -> None:
    """One pass with a cache gives the states that the forward pass of training gives."""
    model, encoder = assistant.load_model(), assistant.encoder
    [branch] = model.output_branches().values()
    example = encode_request(encoder, SAMPLES[2], SETTINGS)
    batch = collate([example], pad_id=0, side="left")
    found = decode(model, batch, max_new_tokens=12, pad_id=0, end_ids=encoder.stop_ids)
    signals, vocabulary = branch.signal_embeddings(), model.spec.backbone.vocabulary
    prompt, _ = model.embed(batch, model.media_tokens(batch))
    words = model.backbone.get_input_embeddings()
    new = [
        signals[number - vocabulary] if number >= vocabulary else words.weight[number]
        for number in found.ids_bt[0].tolist()
    ]
    embeddings = torch.cat([prompt, torch.stack(new)[None]], dim=1)
    hidden = model.backbone.get_decoder()(inputs_embeds=embeddings).last_hidden_state[0]
    for states in ("before", "at"):
        spec = replace(branch.spec, projector=replace(branch.spec.projector, states=states))
        branch.spec, kept = spec, branch.spec
        again = decode(model, batch, max_new_tokens=12, pad_id=0, end_ids=encoder.stop_ids)
        branch.spec = kept
        for medium in again.media:
            start = prompt.shape[1] + medium.start - (states == "before")
            read = hidden[start : start + 8] + (signals if states == "at" else 0)
            torch.testing.assert_close(
                medium.condition_1lw, branch.condition(read[None]), atol=1e-4, rtol=1e-4
            )


def test_an_exported_folder_replies_the_same(tmp_path) -> None:
    changes = {"peft": None, "trainable": TRAINABLE_OUTPUTS, "signals": -200.0}
    random_run(tmp_path / "run", "minigpt_5", **changes)
    export_run(tmp_path / "run", tmp_path / "exported", layout="mmloom")
    options = {"steps": 2, "max_new_tokens": 12}
    found, expected = (
        GeneratingAssistant.open(tmp_path / name).generate(PROMPTS[2], **options)
        for name in ("exported", "run")
    )
    assert found.text == expected.text
    assert expected.media
    for medium, other in zip(found.media, expected.media, strict=True):
        assert torch.equal(medium.values, other.values)


@pytest.mark.parametrize(
    ("preset", "kinds"),
    [
        ("next_gpt", {"image", "audio"}),
        pytest.param("codi_2", {"image", "video", "audio"}, marks=pytest.mark.nightly),
    ],
)
def test_media_of_several_kinds_stand_in_one_reply(preset, kinds, tmp_path) -> None:
    random_run(tmp_path / "run", preset, signals=6.0)
    assistant = GeneratingAssistant.open(tmp_path / "run")
    settings = replace(SETTINGS, steps=1)
    samples = [asked(number, PROMPTS[place]) for number, place in enumerate((0, 1, 3))]
    together = assistant.replier(settings, batch=8).reply(samples)
    assert {medium.kind for reply in together for medium in reply.media} == kinds
    assert any(len({medium.kind for medium in reply.media}) > 1 for reply in together)
    [alone] = assistant.replier(settings).reply(samples[1:2])
    assert alone.media
    for found, expected in zip(alone.media, together[1].media, strict=True):
        assert torch.equal(found.values, expected.values)


def test_files_are_read_by_other_programs(tmp_path) -> None:
    draw = torch.Generator().manual_seed(0)
    picture, video = torch.rand(3, 8, 16, generator=draw), torch.zeros(5, 3, 16, 32)
    for number in range(5):
        video[number, :, 4:12, 4 * number : 4 * number + 8] = 1.0
    sound = 0.5 * torch.sin(torch.arange(2000) * 0.3)
    media = (
        GeneratedMedium(kind="image", values=picture, seed=1),
        GeneratedMedium(kind="video", values=video, seed=2),
        GeneratedMedium(kind="audio", values=sound, seed=3, sample_rate=16_000),
    )
    reply = Reply(id="x", text="<image> and <video>, <audio>", media=media)
    saved = reply.save(tmp_path / "out")
    files = [tmp_path / "out" / each["file"] for each in saved["media"]]
    assert [file.name for file in files] == ["x-1.png", "x-2.mp4", "x-3.wav"]
    pixels = np.asarray(Image.open(files[0]))
    assert np.array_equal(pixels, (picture * 255).round().byte().permute(1, 2, 0).numpy())
    with av.open(files[1]) as container:
        track = container.streams.video[0]
        assert (track.codec_context.name, track.average_rate) == ("h264", 8)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(track)]
    assert np.abs(np.stack(frames) / 255 - video.permute(0, 2, 3, 1).numpy()).mean() < 0.02
    samples, rate = soundfile.read(files[2])
    assert rate == 16_000
    assert np.abs(samples - sound.numpy()).max() < 1e-4
    before = [file.read_bytes() for file in files]
    reply.save(tmp_path / "out")
    assert [file.read_bytes() for file in files] == before


def test_plain_prompts_keep_the_text_that_asks_for_a_medium(tmp_path) -> None:
    random_run(tmp_path / "run", "minigpt_5", prompt="plain")
    encoder = GeneratingAssistant.open(tmp_path / "run").encoder
    asked_for, described = (
        encode_request(encoder, replace(SAMPLES[0], turns=turns), SETTINGS)
        for turns in (
            SAMPLES[0].turns,
            (SAMPLES[0].turns[0], Turn(role="assistant", text="a 7")),
        )
    )
    assert len(asked_for.ids) > 5
    assert isinstance(described, SampleError) or len(described.ids) < len(asked_for.ids)
