"""Fréchet distance and CLIPScore against their definitions, and the command on real files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from scipy.linalg import sqrtm

from etl.cli import UserError
from etl.storage.shards import ShardSet, write_folder
from pipeline.data.generation_targets import captions
from pipeline.data.readers import read_image
from pipeline.generate.media_scores import clip_score, frechet_distance
from pipeline.generate.score_media import score_media
from tests.published_tokenizers import bert
from tests.worlds import generation_sample, question_shards

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
TEXT = SMALL | {"vocab_size": 300, "max_position_embeddings": 130}
TEXT |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}


@pytest.mark.parametrize(("generated", "real"), [(40, 60), (5, 60), (5, 7)])
def test_the_distance_is_that_of_the_definition(generated: int, real: int) -> None:
    random = np.random.default_rng(0)
    one = random.normal(size=(generated, 8)) * np.arange(1, 9)
    other = random.normal(size=(real, 8)) @ random.normal(size=(8, 8)) + 1
    means = one.mean(0) - other.mean(0)
    first, second = np.cov(one.T), np.cov(other.T)
    # A tiny offset, as pytorch-fid adds one where a product is nearly singular.
    offset = np.eye(8) * 1e-9
    root = sqrtm((first + offset) @ (second + offset)).real
    expected = means @ means + np.trace(first + second - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-3)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9 * np.square(one).sum())


def test_distances_of_shifted_and_scaled_features_are_known() -> None:
    one = np.random.default_rng(1).normal(size=(50, 4))
    assert frechet_distance(one, one + 2.0) == pytest.approx(4 * 4.0)
    trace = np.trace(np.cov(one.T))
    mean = one.mean(0)
    assert frechet_distance(one, 3 * one) == pytest.approx(4 * mean @ mean + 4 * trace)
    with pytest.raises(ValueError, match="two media or more"):
        frechet_distance(one[:1], one)
    with pytest.raises(ValueError, match="the same width"):
        frechet_distance(one[:, :3], one)


def test_clip_score_is_the_mean_of_positive_cosines() -> None:
    media = np.array([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    texts = np.array([[3.0, 0.0], [0.0, -1.0], [0.0, 5.0]])
    assert clip_score(media, texts) == pytest.approx(100 * (1 + 0 + 0.5**0.5) / 3)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    vision = SMALL | {"image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=vision, projection_dim=8)
    torch.manual_seed(0)
    transformers.CLIPModel(config).eval().save_pretrained(folder)
    bert().save_pretrained(folder)
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor.save_pretrained(folder)
    return folder


def generated(folder: Path, kinds: tuple[str, ...], suffix: dict[str, str]) -> tuple[Path, Path]:
    """Write shards, and replies to them whose media are the true ones of the next sample."""
    samples = [generation_sample(0, number, kind=kind) for kind in kinds for number in range(6)]
    samples = [replace(one, id=f"{n}-{one.id}") for n, one in enumerate(samples)]
    data = write_folder(folder / "data", samples, job="test")
    made = folder / "made"
    made.mkdir()
    lines = []
    for number, sample in enumerate(samples):
        kind = kinds[number // 6]
        name = f"{number}.{suffix[kind]}"
        (made / name).write_bytes(samples[number // 6 * 6 + (number + 1) % 6].media[0].data)
        media = [{"kind": kind, "file": name, "seed": 0}] if number % 6 else []
        lines.append({"id": sample.id, "text": "", "media": media})
    (made / "replies.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return data, made


def test_pictures_are_scored_by_a_clip_folder(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, made = generated(tmp_path, ("image",), {"image": "png"})
    words = ["--generated", made, "--data", data, "--clip", clip, "--image-encoder", clip, "--json"]
    assert score_media(list(map(str, words))) == 0
    distance, agreement = json.loads(capsys.readouterr().out)
    assert (distance["metric"], distance["stand_in"]) == ("FID", True)
    assert (distance["generated"], distance["real"], distance["missing"]) == (5, 6, 1)
    assert distance["model"] == f"CLIPModel of {clip}"
    assert (agreement["metric"], agreement["stand_in"]) == ("CLIPScore", False)
    model = transformers.CLIPModel.from_pretrained(clip)
    processor = transformers.AutoImageProcessor.from_pretrained(clip)
    tokenizer = transformers.AutoTokenizer.from_pretrained(clip)
    shards = ShardSet([data])
    cosines = []
    for number in range(1, 6):
        sample = shards[number]
        inputs = tokenizer(captions(sample.turns, sample.lineage), return_tensors="pt")
        pixels = processor([read_image((made / f"{number}.png").read_bytes())], return_tensors="pt")
        output = model(**inputs, **pixels)
        cosine = torch.cosine_similarity(output.image_embeds, output.text_embeds)
        cosines.append(cosine.item())
    expected = 100 * np.maximum(cosines, 0).mean()
    assert agreement["value"] == pytest.approx(expected, rel=1e-3)


def test_sounds_are_scored_by_a_clap_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clap"
    audio = {
        "hidden_size": 64,
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 1, 1],
        "num_hidden_layers": 4,
        "num_mel_bins": 64,
        "spec_size": 256,
        "window_size": 8,
        "projection_dim": 8,
    }
    text = TEXT | {"projection_dim": 8}
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=8)
    torch.manual_seed(0)
    transformers.ClapModel(config).eval().save_pretrained(folder)
    bert().save_pretrained(folder)
    transformers.ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(folder)
    data, made = generated(tmp_path, ("audio",), {"audio": "wav"})
    words = ["--generated", made, "--data", data, "--clap", folder, "--json"]
    assert score_media(list(map(str, words))) == 0
    distance, agreement = json.loads(capsys.readouterr().out)
    assert (distance["metric"], distance["real"]) == ("FAD (CLAP)", 6)
    assert np.isfinite(distance["value"])
    assert distance["value"] >= -1e-6
    assert 0 <= agreement["value"] <= 100


def test_what_is_missing_is_one_line(clip: Path, tmp_path: Path) -> None:
    data, made = generated(tmp_path, ("image",), {"image": "png"})

    def call(*more: object) -> None:
        score_media(list(map(str, ["--generated", made, "--data", data, *more])))

    with pytest.raises(UserError, match="want a model: --inception"):
        call()
    with pytest.raises(UserError, match=r"no config.json; want a folder with a transformers"):
        call("--clip", tmp_path)
    with pytest.raises(UserError, match="--inception: No module named 'torch_fidelity'"):
        call("--inception", tmp_path / "weights.pth")
    with pytest.raises(UserError, match="cannot be loaded"):
        call("--clap", clip)
    (made / "replies.jsonl").unlink()
    with pytest.raises(UserError, match=r"replies.jsonl: no such file; want the output of"):
        call("--clip", clip)
    others = question_shards(tmp_path / "questions", 3)
    (made / "replies.jsonl").write_text("")
    with pytest.raises(UserError, match="no generated media of kind image"):
        score_media(["--generated", str(made), "--data", str(others), "--clip", str(clip)])
