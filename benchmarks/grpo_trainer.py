"""The other side of `grpo.py`: TRL's GRPOTrainer with transformers' LLaVA."""

from __future__ import annotations

import io
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from datasets import Dataset
from peft import LoraConfig
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from benchmarks.grpo import ALPHA, RANK, TARGETS, letters
from etl.storage.shards import ShardSet

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %} "
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a LLaVA with GRPO on questions from shards."""

    checkpoint: Path
    """A transformers checkpoint."""
    data: Path
    """The questions."""
    output: Path
    """File for the seconds and the length of answers of each step."""
    prompts: int
    group: int
    tokens: int


class StepTimes(TrainerCallback):
    """Records the seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """Start the clock."""
        self._begun = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
        """Record the time."""
        self.seconds.append(time.perf_counter() - self._begun)


def questions(folder: Path) -> Dataset:
    """Return the prompts and images of shards."""
    shards = ShardSet([folder])
    rows = []
    for number in range(len(shards)):
        sample = shards[number]
        text = sample.turns[0].text.removeprefix("<image>\n")
        content = [{"type": "image"}, {"type": "text", "text": text}]
        image = Image.open(io.BytesIO(sample.media[0].data))
        rows.append({"prompt": [{"role": "user", "content": content}], "image": image})
    return Dataset.from_list(rows)


def rewards(completions: list[Any], **_: Any) -> list[float]:  # noqa: ANN401
    """Return the reward of each answer."""
    return [letters(_text(completion)) for completion in completions]


def _text(completion: Any) -> str:  # noqa: ANN401
    content = completion[0]["content"]
    return content if isinstance(content, str) else content[0]["text"]


def run(options: Options) -> None:
    """Train, and write times and lengths."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)  # else it synchronizes gradients with nobody
    model = LlavaForConditionalGeneration.from_pretrained(options.checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    model.config.image_token_index = tokenizer.convert_tokens_to_ids("<image>")
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor.from_pretrained(options.checkpoint),
        tokenizer=tokenizer,
        patch_size=model.config.vision_config.patch_size,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    step_times = StepTimes()
    trainer = GRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=rewards,
        train_dataset=questions(options.data),
        args=GRPOConfig(
            output_dir=str(options.output.parent / "trl"),
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=options.prompts * options.group,
            num_generations=options.group,
            max_completion_length=options.tokens,
            num_train_epochs=1,
            learning_rate=1e-4,
            beta=0.0,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            seed=0,
        ),
        peft_config=LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            target_modules=r".*language_model.*\.(" + "|".join(TARGETS) + ")",
        ),
        callbacks=[step_times],
    )
    trainer.train()
    lengths = [
        entry["completions/mean_length"]
        for entry in trainer.state.log_history
        if "completions/mean_length" in entry
    ]
    options.output.write_text(json.dumps({"seconds": step_times.seconds, "lengths": lengths}))


if __name__ == "__main__":
    run(tyro.cli(Options))
