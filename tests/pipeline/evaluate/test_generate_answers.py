"""Generated answers do not depend on the batches."""

from pathlib import Path

from etl.storage.shards import ShardSet
from model.build import build, build_tokenizer
from model.presets import system
from pipeline.data.encode import SampleEncoder
from pipeline.evaluate.generate_answers import generate_answers, without_media
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
