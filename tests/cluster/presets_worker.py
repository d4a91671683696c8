"""One rank that trains tiny presets in MM-PT and SFT and tells what moved; `test_presets` runs it.

    RANK=0 WORLD_SIZE=2 … python -m tests.cluster.presets_worker FOLDER PRESET …

The presets are trained one after the other; each is a name or a file. FOLDER holds shards,
`KIND/STAGE`, and gets `runs/PRESET/STAGE.json`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from etl.storage.shards import ShardSet
from model.batch import Batch
from model.build import build, build_text_tokenizer, build_tokenizer
from model.multimodal_lm import MultimodalLM
from model.weights import load_trained
from pipeline.checkpoint.checkpoints import newest_weights
from pipeline.checkpoint.gather import gather_parameters
from pipeline.config.run_config import RunConfig, TrainOptions, changed_preset, resolve
from pipeline.data.collate import collate
from pipeline.data.encode import SampleEncoder
from pipeline.train import train as common
from tests.pipeline.test_presets_train import generation_targets

STEPS = 8
LOOKED_AT = 8
STAGES = ("pt", "sft")


def main(folder: Path, names: list[str]) -> None:
    engines = []
    start_engine = common.start_engine

    def remember(*words, **named):
        engines.append(start_engine(*words, **named))
        return engines[-1]

    common.start_engine = remember
    # With this, PyTorch fills uninitialized memory with NaN, so a result shows if any is read.
    torch.use_deterministic_algorithms(True, warn_only=True)
    for name in names:
        preset = changed_preset(name, "tiny", ())
        kinds = [kind for kind in preset.pt.kinds(preset.model) if (folder / kind).is_dir()]
        for stage in STAGES:
            run = folder / "runs" / Path(name).stem
            started = time.perf_counter()
            options = TrainOptions(
                preset=name,
                scale="tiny",
                data=tuple(folder / kind / stage for kind in (*kinds, "text")),
                output=run / stage,
                init_from=run / "pt" if stage == "sft" else None,
                max_steps=STEPS,
                save_every=STEPS,
            )
            config = resolve(options, stage)
            code = common.train_stage(config, "never")
            module = engines.pop().module
            now = {
                parameter: tensor.cpu().clone()
                for parameter, tensor in gather_parameters(list(module.named_parameters()))
            }
            if dist.get_rank() == 0:
                report = compare(config, module, now)
                report |= {"code": code, "kinds": kinds, "seconds": time.perf_counter() - started}
                (run / f"{stage}.json").write_text(json.dumps(report))


def compare(
    config: RunConfig, module: torch.nn.Module, now: dict[str, torch.Tensor]
) -> dict[str, object]:
    """Return which parameters train, which have moved, and whether what was saved is what is."""
    fresh = build(config.system.model, config.settings, weights="random", seed=config.seed)
    if config.init_from is not None:
        load_trained(fresh, newest_weights(Path(config.init_from)))
    before = {name: weight.detach().clone() for name, weight in fresh.named_parameters()}
    batch = first_samples(config)
    loss_before = loss(fresh, batch)
    load_trained(fresh, newest_weights(Path(config.output)))
    saved = load_file(newest_weights(Path(config.output)))
    return {
        "loss": [loss_before, loss(fresh, batch)],
        "trainable": [name for name, weight in module.named_parameters() if weight.requires_grad],
        "moved": [name for name, weight in now.items() if not torch.equal(weight, before[name])],
        "saved": sorted(saved),
        "saved_wrong": [
            name for name, weight in saved.items() if not torch.equal(weight, now[name])
        ],
        "parameters": len(now),
    }


def first_samples(config: RunConfig) -> Batch:
    """Return the first samples of every folder as one batch."""
    spec, weights = config.system.model, config.weights
    tokenizer = build_tokenizer(spec, weights=weights)
    encoder = SampleEncoder(
        spec,
        tokenizer,
        prompt=config.settings.prompt,
        max_tokens=config.settings.max_tokens,
        text_tokenizer=build_text_tokenizer(spec, weights=weights),
        generation_targets=generation_targets(spec, config.settings, weights),
    )
    folders = [ShardSet([Path(folder)]) for folder in config.data]
    rows = [encoder.encode(folder[number]) for folder in folders for number in range(LOOKED_AT)]
    return collate(rows, pad_id=tokenizer.pad_token_id, side="right")


@torch.no_grad()
def loss(model: MultimodalLM, batch: Batch) -> float:
    logits, targets, *_ = model.eval()(batch)
    return cross_entropy(logits, targets).item()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
