"""Whole models give the same numbers as transformers', after importing their checkpoints.

Pictures go through our own `preprocess`, rows of unequal length are padded on the right, and every
position of the text is compared.
"""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import BlipImageProcessorPil, LlavaImageProcessorPil

from model.build import preprocess
from model.encoders.pictures import normalise
from model.presets import system
from pipeline.config.run_config import read_config
from pipeline.convert.import_ import import_run
from pipeline.data.collate import collate
from pipeline.data.encode import Example, MediumInput
from pipeline.evaluate.evaluate import load_run
from tests import published


def brought_in(theirs, folder):
    """Return our model of a checkpoint that was saved, imported and loaded like a run."""
    theirs.save_pretrained(folder / "source")
    import_run(folder / "source", folder / "run", "pt")
    config = read_config(folder / "run" / "config.json")
    exact = replace(config.system.pt, precision="fp32")
    config = replace(config, system=replace(config.system, pt=exact))
    return load_run(config, folder / "run").eval()


def picture(seed):
    """Return a picture that is not square and must be resized."""
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (37, 50, 3), generator=draw, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def row(spec, *, media, words, asked, seed):
    """Return a row: a token, the media, then words; and an instruction for the Q-Former."""
    draw = torch.Generator().manual_seed(seed)

    def some(count, most=published.VIDEO_ID):
        return torch.randint(3, most, (count,), generator=draw).tolist()

    ids, kinds, placed = some(1), [""], []
    for kind in media:
        branch = spec.input_branch(kind)
        frames = [preprocess(branch.encoder, picture(seed + n)) for n in range(branch.frames)]
        text = tuple(some(asked, 300)) if branch.projector.reads_text else ()
        start = len(ids)
        placed.append(
            MediumInput(
                kind=kind, start=start, first=start, input_values=torch.cat(frames), text=text
            )
        )
        ids += [published.TOKENS[kind]] * spec.context_tokens(branch) + some(2)
        kinds += [kind] * spec.context_tokens(branch) + ["", ""]
    ids, kinds = ids + some(words), kinds + [""] * words
    labels = [token if not kind else -100 for token, kind in zip(ids, kinds, strict=True)]
    answer = some(words) if spec.backbone.seq2seq else None
    return Example(ids=ids, labels=labels, kinds=kinds, media=tuple(placed), answer=answer)


@torch.no_grad()
def compare(ours, theirs, media, pixels):
    """Compare logits at all text positions.

    Args:
        ours, theirs: the models.
        media: the kinds of media in each of two rows.
        pixels: batch → the other model's input of media.
    """
    rows = [
        row(ours.spec, media=media, words=9, asked=7, seed=1),
        row(ours.spec, media=media, words=4, asked=3, seed=2),
    ]
    batch = collate(rows, pad_id=0, side="right")
    assert (batch.attention_bt == 0).any()
    inputs = pixels(replace(batch, media=as_theirs(ours.spec, batch)))
    if any(branch.projector.reads_text for branch in ours.spec.inputs):
        text = batch.media[media[0]].text
        assert (text.mask_bl == 0).any()
        inputs |= {"qformer_input_ids": text.ids_bl, "qformer_attention_mask": text.mask_bl}
    if batch.decoder_bs is not None:
        inputs["decoder_input_ids"] = batch.decoder_bs
    expected = theirs(input_ids=batch.ids_bt, attention_mask=batch.attention_bt, **inputs).logits
    expected = (expected if batch.decoder_bs is not None else expected[:, :-1])[batch.target_mask]
    found, targets, *_ = ours(batch)
    assert len(targets) == len(found) > 12
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    swapped = {
        kind: replace(placed, input_values=placed.input_values.flip(0))
        for kind, placed in batch.media.items()
    }
    assert (ours(replace(batch, media=swapped))[0] - found).abs().max() > 0.01  # media are read


def as_theirs(spec, batch):
    """Return the batch's media with normalised pixels; our encoders normalise them themselves."""
    encoders = {kind: spec.input_branch(kind).encoder for kind in batch.media}
    return {
        kind: replace(
            placed,
            input_values=normalise(placed.input_values, encoders[kind].processor),
        )
        for kind, placed in batch.media.items()
    }


def images(batch):
    return {"pixel_values": batch.media["image"].input_values[:, 0]}


def videos(batch):
    return {"pixel_values": batch.media["video"].input_values}


@pytest.mark.parametrize("strategy", ["default", "full"])
def test_llava(tmp_path, strategy):
    theirs = published.llava(vision_feature_select_strategy=strategy)
    ours = brought_in(theirs, tmp_path)
    assert ours.spec.input_branch("image").tokens == (16 if strategy == "default" else 17)
    compare(ours, theirs, ["image"], images)


def test_video_llava_with_pictures_and_videos_in_one_row(tmp_path):
    theirs = published.video_llava()
    ours = brought_in(theirs, tmp_path)
    compare(
        ours,
        theirs,
        ["video", "image"],
        lambda batch: images(batch) | {"pixel_values_videos": batch.media["video"].input_values},
    )


@pytest.mark.parametrize("text", [published.OPT, published.T5], ids=["opt", "t5"])
def test_blip_2(tmp_path, text):
    theirs = published.blip_2(text)
    compare(brought_in(theirs, tmp_path), theirs, ["image"], images)


@pytest.mark.parametrize("text", [published.LLAMA, published.T5], ids=["llama", "t5"])
def test_instructblip(tmp_path, text):
    theirs = published.instructblip(text)
    compare(brought_in(theirs, tmp_path), theirs, ["image"], images)


def test_instructblip_for_videos(tmp_path):
    theirs = published.instructblip_video(published.LLAMA)
    compare(brought_in(theirs, tmp_path), theirs, ["video"], videos)


def test_pixels_equal_those_of_transformers_processors():
    tall, wide = picture(1), picture(1).rotate(90, expand=True)
    for encoder, processor in (
        (system("blip_2").model.inputs[0].encoder, BlipImageProcessorPil()),
        (system("llava_1_5_7b").model.inputs[0].encoder, LlavaImageProcessorPil(do_pad=True)),
    ):
        side = encoder.image_size
        processor.size = {"height": side, "width": side}
        processor.crop_size = processor.size
        for photo in (tall, wide):
            expected = processor(photo, return_tensors="pt")["pixel_values"]
            pixels = normalise(preprocess(encoder, photo), encoder.processor)
            torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)
