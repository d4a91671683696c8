"""Weights that are not there: one line at once."""

from pathlib import Path

import pytest

from model.spec import SpecError
from model.weights import load_tokenizer, load_transformers


class Hub:
    """In place of transformers' classes: is asked only for what may be on the hub."""

    @staticmethod
    def from_pretrained(source: str) -> str:
        return f"loaded {source}"


@pytest.mark.parametrize("source", ["gpt2", "lmsys/vicuna-7b-v1.5"])
def test_a_hub_name_is_left_to_the_hub(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_transformers(Hub, source) == f"loaded {source}"


@pytest.mark.parametrize(
    "source", ["models/vicuna-8b", "./vicuna-8b", "{0}/models/vicuna-8b", "a/b/c", "~/none", "b/"]
)
def test_a_mistyped_folder_is_not_looked_for_on_the_hub(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "vicuna-7b").mkdir(parents=True)
    source = source.format(tmp_path)
    with pytest.raises(SpecError, match=f"^'{source}': no such folder; ") as error:
        load_transformers(Hub, source)
    hint = "did you mean" if source.endswith("models/vicuna-8b") else "was it moved?"
    assert hint in str(error.value)


@pytest.mark.parametrize("config", ["", '{"model_type": "t5"}', '{"model_type": "llama"}'])
def test_a_folder_without_a_tokenizer_is_one_line(config: str, tmp_path: Path) -> None:
    """Of a T5 transformers would make an empty tokenizer."""
    if config:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(SpecError, match=f"^{tmp_path}: holds no tokenizer; want one of tokenizer"):
        load_tokenizer(str(tmp_path))
