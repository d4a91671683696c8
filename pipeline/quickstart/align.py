"""SFT, then RLHF on the digits world: `python -m pipeline.quickstart.align --output DIR`.

Serve → ETL → MM-PT → SFT on easy questions → from this one model DRESS, and DPO and then GRPO, on
preferences about harder ones → evaluation → report. Every step is a command that a user could type.
"""

from __future__ import annotations

import functools
import json
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from etl.cli import main, parse
from etl.storage.atomic import write_json
from pipeline.checkpoint.files import CheckpointFolder, step_of
from pipeline.quickstart.align_report import print_align_summary, write_align_report
from pipeline.quickstart.align_scores import STARTS, read_answers, read_media, score
from pipeline.quickstart.commands import (
    StageSummary,
    call,
    empty_folder,
    pipeline_command,
    run_etl,
    serve_world,
    train,
)

PRESET = "digits_image_audio"

OBJECTIVES: Mapping[str, Mapping[str, Any]] = {
    "dress": {"kind": "dress", "good": "yes."},
    "dpo": {"kind": "dpo", "beta": 0.1, "sft_weight": 1.0},
    "grpo": {"kind": "grpo", "group": 8, "max_new_tokens": 6, "rewards": ["exact"], "beta": 0.04},
}
"""Name → objective of RLHF.

GRPO's weight of the divergence is DeepSeekMath's (Shao et al. 2024, §4.2). Without it the model
forgot to count digits, which DPO had taught it: where all answers are right, nothing holds them.
"""

_PT_EPOCHS = 3
_FURTHER: Mapping[str, tuple[object, ...]] = {
    "dress": ("--learning-rate", 1e-3, "--epochs", 2),
    "dpo": ("--learning-rate", 1e-3, "--epochs", 2),
    "grpo": ("--learning-rate", 3e-4, "--global-batch", 32, "--micro-batch", 16),
}
"""Options of a run. GRPO answers each question eight times, so that smaller steps are enough."""
_SAVE_EVERY = {"sft": 42, "dress": 63, "dpo": 63, "grpo": 63}
"""Steps between the checkpoints that the curves show."""
_MID_QUESTIONS = 400
"""Of the checkpoints in the middle of a run, which only the curves need."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Align a small model that sees and hears by DRESS, DPO and GRPO, and compare it with SFT.

    An estimated 18 minutes on two idle cores.
    """

    output: Path = Path("runs/quickstart-align")
    """Folder for everything; an earlier quickstart in it is removed."""
    captions: int = 5000
    """Pairs of image and caption for MM-PT."""
    preferences: int = 2000
    """Preferences about each of pictures and sounds for RLHF, and as many easy dialogues for SFT;
    a tenth as many held-out questions about what is there, and as many about what is not."""
    seed: int = 0
    """Of the data and of all stages."""
    choose: bool = False
    """Score on the handwriting and telephones for choosing settings by, not on those that are
    reported."""
    ranks: int = 2
    """Ranks of the DeepSpeed runs."""


def run(args: Sequence[str]) -> None:
    """Run every step; raises UserError with the command if one fails."""
    options = parse(Options, prog="python -m pipeline.quickstart.align", args=args)
    started = time.monotonic()
    out = empty_folder(options.output)
    stages = _make_data(options, out)
    stages += _train_stages(options, out)
    scores = _scores(out)
    summary = {
        "held_out": {name: one[-1]["held_out"] for name, one in scores.items()},
        "wrong_medium": {name: one[-1]["wrong_medium"] for name, one in scores.items()},
        "seconds_total": time.monotonic() - started,
        "cpu_seconds_total": _cpu_seconds(),
        "curves": scores,
        "stages": [asdict(stage) for stage in stages],
    }
    write_json(out / "summary.json", summary)
    write_align_report(out, summary)
    print_align_summary(out, summary)


def _make_data(options: Options, out: Path) -> list[StageSummary]:
    """Serve the world, and let the ETL make shards of its lists in `out`."""
    sizes = {"captions": options.captions, "dialogues": 0, "questions": 0}
    sizes |= {"preferences": options.preferences, "seed": options.seed}
    with serve_world(out, sizes) as world:
        # On processes of this machine: to start Ray for each list would take longer than the jobs.
        job = functools.partial(run_etl, executor="local")
        asked = "validation" if options.choose else "present_and_absent"
        return [
            job("laion", world / "laion.parquet", out / "captions"),
            job("instruct", world / "sound_captions.json", out / "sound_captions"),
            job("instruct", world / "easy_dialogues.json", out / "easy"),
            job("preference", world / "preferences.json", out / "preferences"),
            job("instruct", world / f"{asked}.json", out / "questions"),
        ]


def _train_stages(options: Options, out: Path) -> list[StageSummary]:
    """Train MM-PT, SFT, and each objective of RLHF."""
    pt, sft, ranks = out / "pt", out / "sft", options.ranks
    common = ("--seed", options.seed, "--keep-last", 9, "--ds-config", "zero2")
    captions = [out / "captions", out / "sound_captions"]
    more = (*common, "--epochs", _PT_EPOCHS)
    stages = [train("pt", PRESET, captions, pt, ranks=ranks, extra=more)]
    easy = train(
        *("sft", PRESET, [out / "easy"], sft),
        ranks=ranks,
        init_from=pt,
        save_every=_SAVE_EVERY["sft"],
        extra=common,
    )
    stages.append(easy)
    for name, objective in OBJECTIVES.items():
        done = train(
            *("rlhf", PRESET, [out / "preferences"], out / name),
            ranks=ranks,
            init_from=out / STARTS[name],
            save_every=_SAVE_EVERY[name],
            extra=(
                *common,
                *_FURTHER[name],
                *("--set", f"rlhf.objective={json.dumps(objective)}"),
            ),
        )
        stages.append(replace(done, name=name))
    return stages


def _scores(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Return, for each run from SFT on, the figures of its checkpoints in order of steps."""
    media = read_media(out / "questions")
    scores: dict[str, list[dict[str, Any]]] = {}
    for name in ("sft", *OBJECTIVES):
        saved = CheckpointFolder(out / name / "checkpoints").complete()
        *middle, last = sorted(map(step_of, saved))
        scores[name] = []
        for step in (*middle, last):
            folder = out / "evaluations" / f"{name}-{step}"
            limit = ("--limit", _MID_QUESTIONS) if step != last else ()
            words = ("--run", out / name, "--checkpoint", step, "--data", out / "questions")
            call(pipeline_command("evaluate", *words, "--output", folder, *limit))
            scores[name].append({"step": step, **score(read_answers(folder, media))})
    return scores


def _cpu_seconds() -> float:
    """Return the CPU time of everything that was started: on a busy machine the better measure."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main(run)
