"""One rank of the other side of `step_rate.py`: HF Trainer with transformers' LLaVA.

It gets each sample as this trainer tokenizes it, in the order of this trainer's run, and pads a
batch to its longest sample. Everything else is the Trainer's.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import tyro
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, SequentialSampler
from transformers import (
    LlavaForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from etl.storage.shards import ShardSet
from model.batch import IGNORED
from model.build import build_tokenizer
from model.encoders.pictures import normalise
from pipeline.config.deepspeed import ds_config_file
from pipeline.config.run_config import RunConfig, read_config
from pipeline.data.encode import SampleEncoder
from pipeline.data.sampler import build_sampler


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a LLaVA with HF Trainer on the samples of a run of this trainer."""

    checkpoint: Path
    """A transformers checkpoint."""
    run: Path
    """The run whose data, order and settings are used."""
    output: Path
    """File for the losses and the end times of the steps."""


class RunDataset(Dataset[dict[str, Tensor]]):
    """The run's samples in its order, tokenized as in the run."""

    def __init__(self, config: RunConfig, image_id: int) -> None:
        settings, model = config.settings, config.system.model
        tokenizer = build_tokenizer(model, weights=config.weights)
        order = build_sampler(config, tokenizer).stream
        self._rows = order.rows(0, len(order))
        self._shards = ShardSet([Path(folder) for folder in config.data])
        self._encoder = SampleEncoder(
            model, tokenizer, prompt=settings.prompt, max_tokens=settings.max_tokens
        )
        self._image_id = image_id
        [slot] = model.inputs
        self._mean, self._std = slot.encoder.mean, slot.encoder.std

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = self._encoder.encode(self._shards[int(self._rows[index])])
        ids = [
            self._image_id if kind else token
            for token, kind in zip(row.ids, row.kinds, strict=True)
        ]
        item = {"input_ids": torch.tensor(ids), "labels": torch.tensor(row.labels)}
        if row.media:
            pixels = torch.cat([medium.input_values for medium in row.media])
            item["pixel_values"] = normalise(pixels, mean=self._mean, std=self._std)
        return item


def collate(items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Pad to the longest sample of the batch."""
    ids = [item["input_ids"] for item in items]
    batch = {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(
            [item["labels"] for item in items], batch_first=True, padding_value=IGNORED
        ),
    }
    pictures = [item["pixel_values"] for item in items if "pixel_values" in item]
    return batch | ({"pixel_values": torch.cat(pictures)} if pictures else {})


class SequentialTrainer(Trainer):
    """Uses the samples in order."""

    def _get_train_sampler(self, *args: Any, **more: Any) -> SequentialSampler:  # noqa: ANN401
        return SequentialSampler(self.train_dataset)


class StepTimes(TrainerCallback):
    """Records the end time of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **more: Any,  # noqa: ANN401
    ) -> None:
        """Record the time."""
        self.seconds.append(time.perf_counter())


def run(options: Options) -> None:
    """Train, and write losses and times."""
    config = read_config(options.run / "config.json")
    settings = config.settings
    model = LlavaForConditionalGeneration.from_pretrained(options.checkpoint, dtype=torch.float32)
    model.requires_grad_(True)
    model.model.vision_tower.requires_grad_(False)
    world = int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    zero = json.loads(ds_config_file(settings.ds_config).read_bytes())
    filled = (
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    )
    deepspeed = zero | dict.fromkeys(filled, "auto")
    step_times = StepTimes()
    trainer = SequentialTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(options.output.parent / "trainer"),
            use_cpu=True,
            deepspeed=deepspeed,
            per_device_train_batch_size=settings.micro_batch,
            gradient_accumulation_steps=settings.global_batch // settings.micro_batch // world,
            num_train_epochs=1,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=1,
            weight_decay=settings.weight_decay,
            max_grad_norm=1.0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            dataloader_num_workers=0,
            seed=0,
        ),
        train_dataset=RunDataset(config, model.config.image_token_id),
        data_collator=collate,
        callbacks=[step_times],
    )
    trainer.train()
    if trainer.is_world_process_zero():
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        options.output.write_text(json.dumps({"losses": losses, "ended": step_times.seconds}))
    # Rank 0 holds the process group's store: if it ends first, another rank may fail at its exit.
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    run(tyro.cli(Options))
