"""Pictures to pixels: from a file as transformers' processors do it, and fast as the simple way."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from model.encoders import pictures
from model.encoders.clip import build, preprocess
from model.encoders.pictures import normalise, resized, to_pixels
from model.spec import SpecError
from model.spec.image import ClipVision
from model.spec.image_processor import (
    CLIP_MEAN,
    HALF,
    ImageProcessor,
    center_crop,
    pad_to_square,
    squash,
)
from pipeline.data.readers import read_image

SIZES = [(640, 480), (480, 640), (333, 200), (7, 5), (1, 90), (90, 1), (64, 64), (30, 31), (31, 30)]
TINY = ClipVision(
    weights="",
    width=1024,
    mlp_width=4096,
    layers=24,
    heads=16,
    patch_size=14,
    processor=pad_to_square(224),
).tiny()

EDGE, CROP = {"shortest_edge": 36}, {"height": 32, "width": 32}
PUBLISHED = {
    "clip": ("CLIP", {"size": EDGE, "crop_size": CROP}),
    "clip, crop larger than the edge": ("CLIP", {"size": EDGE, "crop_size": 41}),
    "clip, no crop": ("CLIP", {"size": CROP, "do_center_crop": False}),
    "clip, stretched and cropped": (
        "CLIP",
        {"size": {"height": 50, "width": 40}, "crop_size": CROP},
    ),
    "clip, not normalised": ("CLIP", {"size": EDGE, "crop_size": CROP, "do_normalize": False}),
    "clip, not rescaled": ("CLIP", {"size": EDGE, "crop_size": CROP, "do_rescale": False}),
    "clip, defaults": ("CLIP", {}),
    "llava, padded": ("Llava", {"size": {"shortest_edge": 32}, "crop_size": CROP, "do_pad": True}),
    "llava, padded and cropped": ("Llava", {"size": EDGE, "crop_size": CROP, "do_pad": True}),
    "llava, not padded": ("Llava", {"size": EDGE, "crop_size": CROP}),
    "blip": ("Blip", {"size": CROP}),
    "siglip": ("Siglip", {"size": {"height": 24, "width": 32}, "resample": 2}),
    "vit": ("ViT", {"size": CROP}),
    "bit (DINOv2)": ("Bit", {"size": EDGE, "crop_size": CROP}),
    "deit": ("DeiT", {"size": 36, "crop_size": 32}),
    "beit": ("Beit", {"size": CROP}),
    "pvt": ("Pvt", {"size": CROP}),
    "convnext": ("ConvNext", {"size": {"shortest_edge": 40}}),
    "convnext, large": ("ConvNext", {"size": {"shortest_edge": 384}}),
    "chinese clip": ("ChineseCLIP", {"size": EDGE, "crop_size": CROP}),
}


def noise(width, height, mode="RGB"):
    draw = np.random.default_rng(width)
    bands = Image.new(mode, (1, 1)).getbands()
    values = draw.integers(0, 256, (height, width, len(bands)), dtype=np.uint8)
    return Image.fromarray(values.squeeze(2) if len(bands) == 1 else values, mode)


def file_of(picture, suffix="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, suffix, **options)
    return stream.getvalue()


FILES = {
    "rgb, odd": file_of(noise(53, 37)),
    "rgb, tall": file_of(noise(37, 53)),
    "jpeg": file_of(noise(61, 45), "JPEG"),
    "cmyk": file_of(noise(31, 33, "CMYK"), "JPEG"),
    "grey": file_of(noise(45, 61, "L")),
    "grey, transparent": file_of(noise(45, 61, "LA")),
    "one bit": file_of(noise(45, 61, "L").convert("1")),
    "palette": file_of(noise(33, 32).quantize(16)),
    "palette, transparent": file_of(noise(33, 32).quantize(16), transparency=3),
    "rgb, one colour transparent": file_of(Image.new("RGB", (9, 7)), transparency=(0, 0, 0)),
    "rgba": file_of(noise(40, 41, "RGBA")),
    "very long": file_of(noise(700, 3)),
    "very high": file_of(noise(2, 300)),
    "one pixel": file_of(noise(1, 1)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_pixels_of_a_file_equal_those_of_transformers(name, tmp_path):
    kind, values = PUBLISHED[name]
    theirs = getattr(transformers, f"{kind}ImageProcessorPil")(**values, do_convert_rgb=True)
    ours = ImageProcessor.from_config(theirs.to_dict())
    brief = ImageProcessor.from_config({"image_processor_type": f"{kind}ImageProcessor", **values})
    assert brief == ours
    back = ours.to_config()
    assert ImageProcessor.from_config(back) == ours
    exported = getattr(transformers, f"{back['image_processor_type']}Pil")(**back)
    for file, data in FILES.items():
        picture = Image.open(io.BytesIO(data))
        expected = theirs(picture, return_tensors="pt")["pixel_values"]
        pixels = pictures.preprocess(ours, read_image(data))
        assert pixels.dtype == torch.uint8
        assert torch.equal(normalise(pixels, ours), expected), file
        assert torch.equal(exported(picture, return_tensors="pt")["pixel_values"], expected), file


def test_files_of_older_versions_are_read():
    # openai/clip-vit-large-patch14 as first published.
    old = {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": list(CLIP_MEAN),
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 224,
    }
    assert ImageProcessor.from_config(old) == center_crop(224)
    assert ImageProcessor.from_config({"image_processor": old}) == center_crop(224)
    # google/vit-base-patch16-224, whose class takes a number as the side of a square.
    old |= {"feature_extractor_type": "ViTFeatureExtractor", "do_center_crop": None}
    old |= {"image_mean": [0.5] * 3, "image_std": 0.5, "resample": 2}
    expected = replace(squash(224, mean=HALF, std=HALF), resample="bilinear")
    assert ImageProcessor.from_config(old) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_processor_type": "Qwen2VLImageProcessor"}, "image processor class 'Qwen2VL"),
        ({"image_grid_pinpoints": [[336, 672]]}, "image_grid_pinpoints .* is not supported"),
        ({"do_resize": False}, "do_resize false"),
        ({"size": {"shortest_edge": 30, "longest_edge": 90}}, "many sizes"),
        ({"size": {"shortest_edge": 30}, "do_center_crop": False}, "many sizes"),
    ],
)
def test_rules_that_no_processor_expresses_are_refused(config, message):
    with pytest.raises(SpecError, match=message):
        ImageProcessor.from_config(config)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("side", [16, 224, 336])
def test_padding_after_resizing_rows_gives_the_same_pixels(size, side, monkeypatch):
    monkeypatch.setattr(pictures, "BAND_PIXELS", 5000)
    picture = noise(*size)
    longer = max(size)
    whole = Image.new("RGB", (longer, longer), tuple(int(255 * value) for value in CLIP_MEAN))
    whole.paste(picture, ((longer - size[0]) // 2, (longer - size[1]) // 2))
    expected = whole.resize((side, side), Image.Resampling.BICUBIC)
    found = resized(picture, pad_to_square(side))
    assert np.array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("size", [(9, 4000), (4000, 9)], ids=str)
def test_of_very_long_pictures_only_the_centre_is_resized(size, monkeypatch):
    processor = replace(center_crop(40), shortest_edge=48)
    expected = np.asarray(resized(noise(*size), processor), int)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 1000)
    found = np.asarray(resized(noise(*size), processor), int)
    assert abs(found - expected).max() <= 1
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels is too long"):
        resized(noise(*size), pad_to_square(40))


def test_pixels_have_the_layout_channels_rows_columns():
    picture = noise(20, 30)
    assert torch.equal(to_pixels(picture), torch.from_numpy(np.array(picture)).permute(2, 0, 1))


def test_bytes_and_floats_are_normalised_once():
    pixels = torch.arange(256, dtype=torch.uint8).expand(2, 3, 4, 256)
    processor = squash(8)
    mean, std = (torch.tensor(v)[:, None, None] for v in (processor.mean, processor.std))
    values = normalise(pixels, processor)
    assert torch.equal(values, (pixels / 255 - mean) / std)
    assert normalise(values, processor) is values


def test_an_encoder_treats_bytes_like_normalised_pixels():
    torch.manual_seed(0)
    encoder = build(TINY, weights="random", dtype=torch.float32).eval()
    pixels = preprocess(TINY, noise(40, 30))
    values = normalise(pixels, TINY.processor)
    with torch.no_grad():
        assert torch.equal(encoder(pixels), encoder(values))
