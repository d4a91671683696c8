"""Generated answers: in any batches, of prompts without a token, and up to any kind of end."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from etl.storage.shards import ShardSet
from model.build import build, build_tokenizer
from model.presets import system
from model.sampling import Sampling
from pipeline.data.encode import SampleEncoder
from pipeline.evaluate.generate_answers import StopText, generate_answers, without_media
from tests import published_tokenizers
from tests.worlds import question_shards


def test_answers_do_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    preset = system("digits")
    shards = ShardSet([question_shards(tmp_path, 6)])
    model = build(preset.model, preset.sft, weights="pretrained")
    tokenizer = build_tokenizer(preset.model, weights="pretrained")
    encoder = SampleEncoder(preset.model, tokenizer, prompt="chat", max_tokens=128)
    samples = [shards[0], without_media(shards[1]), *(shards[i] for i in range(2, 6))]
    whole, single = (
        [
            prediction
            for first in range(0, 6, size)
            for prediction in generate_answers(
                model, tokenizer, encoder, samples[first : first + size], max_new_tokens=6
            )
        ]
        for size in (6, 1)
    )
    assert whole == single
    assert [p.truth for p in whole] == [sample.turns[-1].text for sample in samples]


def test_sampled_answers_depend_on_seed_sample_and_number_alone(tmp_path: Path) -> None:
    preset = system("digits")
    shards = ShardSet([question_shards(tmp_path, 3)])
    model = build(preset.model, preset.sft, weights="pretrained")
    tokenizer = build_tokenizer(preset.model, weights="pretrained")
    encoder = SampleEncoder(preset.model, tokenizer, prompt="chat", max_tokens=128)

    def answers(*rows: int, **settings: Any) -> list[tuple[str, ...]]:
        sampling = Sampling(**settings)
        samples = [shards[row] for row in rows]
        found = generate_answers(
            model, tokenizer, encoder, samples, max_new_tokens=8, sampling=sampling
        )
        return [(each.answer, *each.others) for each in found]

    whole = answers(0, 1, 2, temperature=1.5, n=4)
    assert answers(1, temperature=1.5, n=4) == whole[1:2]
    assert answers(2, 0, temperature=1.5, n=2) == [whole[2][:2], whole[0][:2]]
    assert answers(0, 1, 2, temperature=1.5, n=4, seed=1) != whole
    assert all(len(set(each)) > 1 for each in whole)
    greedy = answers(0, 1, 2)
    assert answers(0, 1, 2, temperature=1.5, top_k=1) == greedy
    [(whole_text, *_)] = answers(0, temperature=1.5)
    stop = whole_text[len(whole_text) // 2 :]
    assert answers(0, temperature=1.5, stop=(stop,)) == [(whole_text.partition(stop)[0].strip(),)]


def test_a_prompt_without_a_token_is_answered(tmp_path: Path) -> None:
    preset = system("digits").tiny()
    model = build(preset.model, preset.sft, weights="random")
    tokenizer = published_tokenizers.gpt2(
        ["<none>"], bos_token=None, eos_token=None, unk_token=None
    )
    tokenizer.pad_token = "<none>"
    encoder = SampleEncoder(preset.model, tokenizer, prompt="chat", max_tokens=128)
    (sample,) = [ShardSet([question_shards(tmp_path, 1)])[0]]
    turns = (replace(sample.turns[0], text="<image>"), sample.turns[-1])
    blind = without_media(replace(sample, turns=turns))
    assert blind.turns[0].text == ""
    (found,) = generate_answers(model, tokenizer, encoder, [blind], max_new_tokens=3)
    assert not found.skip_reason


def test_an_answer_may_end_with_a_text_of_several_tokens() -> None:
    tokenizer = published_tokenizers.llama(legacy=False)
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in ("it is 7###", "it is##")]
    length = min(map(len, rows))
    ids_bt = torch.tensor([row[-length:] for row in rows])
    stop = StopText(tokenizer, "###")
    assert stop(ids_bt, torch.empty(0)).tolist() == [True, False]
