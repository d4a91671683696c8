"""Micro-batches are the same from any first step and with any number of workers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from etl.storage.shards import ShardSet, write_folder
from model.batch import IGNORED
from model.presets import system
from model.spec import ModelSpec
from pipeline.data.dataset import CutSample, MultimodalDataset
from pipeline.data.encode import SampleEncoder
from pipeline.data.lengths import read_lengths
from pipeline.data.loader import MicroBatch, micro_batches
from pipeline.data.packing import Layout, PackedLayout, PaddedLayout
from pipeline.data.sampler import BatchSampler, CostModel
from pipeline.data.shuffle import ShuffledStream, Source
from pipeline.data.tokenize import SampleTokenizer
from tests.worlds import caption_shards, sound_question

LAYOUTS = [PaddedLayout(max_samples=3, order="length"), PackedLayout(max_tokens=128, max_media=8)]


class Data:
    """Captions with their encoder and lengths."""

    def __init__(
        self, folder: Path, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, tokens: int = 128
    ) -> None:
        self.shards = ShardSet([folder])
        self.encoder = SampleEncoder(spec, tokenizer, prompt="plain", max_tokens=tokens)
        sample_tokenizer = SampleTokenizer(spec, tokenizer, prompt="plain", max_tokens=tokens)
        self.lengths = read_lengths([folder], sample_tokenizer, spec.modalities, fallback=folder)

    def load(
        self,
        layout: Layout,
        steps: range,
        *,
        num_workers: int = 0,
        batch: int = 12,
        ranks: int = 2,
        rank: int | None = None,
    ) -> list[list[MicroBatch]]:
        rows = len(self.shards)
        sampler = BatchSampler(
            stream=ShuffledStream(
                sources=(Source(first=0, rows=rows, samples_per_epoch=rows),), seed=0, epochs=2
            ),
            global_batch=batch,
            layout=layout,
            lengths=self.lengths,
            cost_model=CostModel(per_medium={"image": 10.0, "audio": 10.0}),
        )
        return list(
            micro_batches(
                MultimodalDataset(self.shards, self.encoder),
                sampler,
                steps=steps,
                rank=ranks - 1 if rank is None else rank,
                ranks=ranks,
                pad_id=0,
                num_workers=num_workers,
            )
        )


@pytest.fixture
def data(tmp_path: Path, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase) -> Data:
    return Data(caption_shards(tmp_path / "captions", 40), spec, tokenizer)


def same(left: list[list[MicroBatch]], right: list[list[MicroBatch]]) -> bool:
    ones = [item.batch for step in left for item in step]
    others = [item.batch for step in right for item in step]
    return all(
        torch.equal(one.ids_bt, other.ids_bt)
        and one.media.keys() == other.media.keys()
        and all(
            torch.equal(one.media[kind].input_values, other.media[kind].input_values)
            for kind in one.media
        )
        for one, other in zip(ones, others, strict=True)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_seeking_gives_the_same_as_iterating(data: Data, layout: Layout) -> None:
    everything = data.load(layout, range(7))
    assert len(everything) == 7
    assert same(everything[4:], data.load(layout, range(4, 7)))


@pytest.mark.parametrize(
    ("layout", "workers"), [pytest.param(LAYOUTS[0], 1, marks=pytest.mark.nightly), (LAYOUTS[1], 2)]
)
def test_workers_do_not_change_the_order(data: Data, layout: Layout, workers: int) -> None:
    assert same(data.load(layout, range(2)), data.load(layout, range(2), num_workers=workers))


def test_all_ranks_have_the_same_number_of_micro_batches(data: Data) -> None:
    for layout in LAYOUTS:
        for ranks in (1, 2, 3):
            counts = [
                [len(items) for items in data.load(layout, range(7), ranks=ranks, rank=rank)]
                for rank in range(ranks)
            ]
            assert counts == [counts[0]] * ranks
            assert min(counts[0]) >= 1


def test_the_short_last_step_is_filled_with_dummy_examples(data: Data) -> None:
    (last,) = data.load(
        PaddedLayout(max_samples=3, order="length"), range(6, 7)
    )  # 8 samples, in bins of 3
    assert [item.samples for item in last] == [3, 0]
    assert bool((last[1].batch.labels_bt == IGNORED).all())
    (packed,) = data.load(PackedLayout(max_tokens=10_000, max_media=8), range(6, 7), ranks=9)
    assert [item.samples for item in packed] == [0]
    assert packed[0].batch.ids_bt.shape == (1, 1)
    assert not packed[0].batch.target_mask.any()


def test_a_packed_batch_has_no_padding_and_separates_its_samples(data: Data) -> None:
    for item, *_ in data.load(PackedLayout(max_tokens=400, max_media=8), range(2)):
        batch = item.batch
        assert batch.ids_bt.shape[0] == 1
        assert batch.ids_bt.shape[1] <= 400
        assert bool(batch.attention_bt.all())
        assert batch.positions_bt is not None
        assert int((batch.positions_bt == 0).sum()) == item.samples
        assert bool((batch.labels_bt[batch.positions_bt == 0] == IGNORED).all())
        assert int(batch.media["image"].media_mask_bt.sum()) == 36 * item.samples


@pytest.mark.parametrize(
    "layout",
    [PaddedLayout(max_samples=12, order="length"), PackedLayout(max_tokens=9000, max_media=99)],
)
def test_a_bad_sample_is_reported_and_skipped(
    layout: Layout, tmp_path: Path, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase
) -> None:
    captions = ShardSet([caption_shards(tmp_path / "captions", 12)])
    samples = [captions[index] for index in range(12)]
    medium = samples[5].media[0]
    samples[5] = replace(samples[5], media=(replace(medium, data=medium.data[:200]),))
    data = Data(write_folder(tmp_path / "bad", samples, job="test"), spec, tokenizer)
    ((item,),) = data.load(layout, range(1), ranks=1)
    assert item.samples == 11
    (bad,) = item.bad
    assert (bad.row, bad.id) == (5, samples[5].id)
    assert "cannot be decoded" in bad.reason
    assert item.batch.media["image"].input_values.shape[0] == 11


def test_a_sound_that_is_cut_is_kept_and_reported(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    samples = [sound_question(1.0), sound_question(3.5)]
    folder = write_folder(tmp_path / "sounds", samples, job="test")
    data = Data(folder, system("digits_audio").model, tokenizer)
    layout = PackedLayout(max_tokens=9000, max_media=99)
    ((item,),) = data.load(layout, range(1), ranks=1, batch=2)
    assert (item.samples, item.bad) == (2, ())
    reason = "audio of 3.5 s, of which the encoder hears 2 s"
    assert item.cut == (CutSample(id="sound-3.5", reason=reason),)


def test_a_sample_skipped_for_its_text_is_reported_without_decoding(
    tmp_path: Path, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase
) -> None:
    data = Data(caption_shards(tmp_path, 12), spec, tokenizer, tokens=30)
    assert len(data.lengths.skip_reasons) == 12
    ((item,),) = data.load(LAYOUTS[1], range(1), ranks=1)
    assert item.samples == 0
    assert {bad.row for bad in item.bad} == set(range(12))
    assert all("do not fit in 30 tokens" in bad.reason for bad in item.bad)
