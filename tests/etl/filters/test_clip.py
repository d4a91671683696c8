import dataclasses
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from etl.cli import UserError
from etl.digits.records import pair
from etl.digits.scenes import encode, render
from etl.filters.clip import ClipModel, ClipSpec, check_model, model_identity
from tests.etl.filters.tiny_clip import save_tiny_clip

PAIRS = [(encode(render(pair(0, n).scene), "image/png"), pair(0, n).caption) for n in range(7)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def directly(folder: Path, data: bytes, caption: str) -> float:
    model = CLIPModel.from_pretrained(folder)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(images=[image], return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(
        [caption], truncation=True, max_length=24, return_tensors="pt"
    )
    with torch.no_grad():
        found = model(**pixels, **tokens)
    return float((found.logits_per_image / model.logit_scale.exp()).detach())


def test_similarities_do_not_depend_on_the_batch_size(folder: Path) -> None:
    spec = ClipSpec(model=str(folder), min_score=None, batch_size=3)
    found = list(ClipModel(spec, cuda=False, threads=1).similarities(PAIRS))
    assert found == pytest.approx([directly(folder, *one) for one in PAIRS], abs=1e-5)
    assert max(found) - min(found) > 0.01
    alone = ClipModel(dataclasses.replace(spec, batch_size=1), cuda=False, threads=1)
    assert list(alone.similarities(PAIRS[:2])) == pytest.approx(found[:2], abs=1e-5)
    assert list(alone.similarities([])) == []


def test_long_captions_are_truncated(folder: Path) -> None:
    clip = ClipModel(ClipSpec(model=str(folder), min_score=None), cuda=False, threads=1)
    (found,) = clip.similarities([(PAIRS[0][0], "many words " * 100)])
    assert -1 <= found <= 1


def test_other_folders_and_names_are_rejected(folder: Path, tmp_path: Path) -> None:
    check_model(str(folder))
    check_model("openai/clip-vit-base-patch32")
    with pytest.raises(UserError, match="no such folder, and not OWNER/NAME"):
        check_model(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="with a model_type"):
        check_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="a model of type 'bert', want 'clip'"):
        check_model(str(tmp_path))


def test_a_model_is_identified_by_its_content(folder: Path, tmp_path: Path) -> None:
    assert model_identity("owner/name") == "owner/name"
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert model_identity(str(tmp_path)) == model_identity(str(folder))
    (tmp_path / "config.json").write_text("{}")
    assert model_identity(str(tmp_path)) != model_identity(str(folder))
