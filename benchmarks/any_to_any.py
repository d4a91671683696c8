"""What eq. 4 and eq. 5 each give generation, with guidance and without; and one model against two.

    python benchmarks/any_to_any.py [--output DIR] [--requests N] [--captions N] [--as-many-steps]

On the digits world, as `make quickstart-any` does. MM-PT and MM-IT are run with eq. 4 alone, eq. 5
alone and both, and the judges see what each model makes with classifier-free guidance and without.
The model with both is then compared with one that was trained for requests alone, and one that was
trained for questions alone: each sees its data as often, or is trained for as many steps. Prints
two tables and as the last line one JSON object. Five times the training of the quickstart: about an
hour on two idle cores.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from etl.cli import main, parse
from model.presets import system
from pipeline.quickstart.any_to_any import PRESET, judge_replies, make_data, understanding
from pipeline.quickstart.any_to_any import Options as QuickstartOptions
from pipeline.quickstart.commands import call, pipeline_command, train
from pipeline.run_folder.metrics_writer import read_metrics

LOSSES: Mapping[str, tuple[float, float]] = {
    "eq. 4": (1.0, 0.0),
    "eq. 5": (0.0, 1.0),
    "both": (1.0, 1.0),
}
"""Name → weights of eqs. 4 and 5; of both, the preset's."""
SCALES = (1.0, None)
"""Of guidance: without, and each generator's own."""
_MANY = 10
"""Times as many epochs as the preset's are more than any of the models needs."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare eqs. 4 and 5, guidance, and one model with one for each purpose."""

    output: Path = Path("runs/any-to-any")
    """Folder for data and runs; existing ones are kept and resumed."""
    captions: int = 5000
    """Pairs of image and caption for MM-PT."""
    dialogues: int = 3500
    """Dialogues about images for MM-IT."""
    questions: int = 600
    """Questions about held-out handwriting."""
    requests: int = 600
    """Requests of each of six tasks; a sixth as many are held out."""
    ranks: int = 2
    """Ranks of the DeepSpeed runs."""
    as_many_steps: bool = False
    """Train the models of one purpose for as many steps as that for both: their data more often."""


def run(args: Sequence[str]) -> None:
    """Run everything and print the results."""
    options = parse(Options, prog="benchmarks/any_to_any.py", args=args)
    out = options.output.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "held_out_requests" / "manifest.json").is_file():
        own = vars(options).items()
        make_data(QuickstartOptions(**{k: v for k, v in own if k != "as_many_steps"}), out)
    losses: dict[str, dict[str, dict[str, float]]] = {}
    for name, weights in LOSSES.items():
        folder = out / name.replace("eq. ", "eq")
        captions, dialogues = ("captions", "generation_captions"), ("dialogues", "requests")
        settings = _settings(*weights)
        sft = _train(options, folder, PRESET, captions, dialogues, settings)
        for scale in SCALES:
            guidance = "without guidance" if scale == 1 else "with guidance"
            losses.setdefault(name, {})[guidance] = _judged(out, sft, scale)
    both = out / "both"
    like = both if options.as_many_steps else None
    alone_in = out / ("alone_steps" if options.as_many_steps else "alone")
    one = {**losses["both"]["with guidance"], **_answers(both / "sft", out)}
    generating = _train(
        options, alone_in / "requests", PRESET, ("generation_captions",), ("requests",), like=like
    )
    understood = _train(
        options, alone_in / "questions", "digits", ("captions",), ("dialogues",), like=like
    )
    alone = {**_judged(out, generating, None), **_answers(understood, out)}
    console = Console()
    console.print(_losses_table(losses))
    console.print(_models_table(one, alone))
    result = {"losses": losses, "one_model": one, "alone": alone}
    sys.stdout.write(json.dumps(result) + "\n")


def _settings(align: float, denoise: float) -> tuple[str, ...]:
    """Return the options that set the weights of eqs. 4 and 5 in both stages."""
    paths = [
        f"{stage}.generation.{name}={weight}"
        for stage in ("pt", "sft")
        for name, weight in (("align", align), ("denoise", denoise))
    ]
    return ("--set", *paths)


def _train(
    options: Options,
    folder: Path,
    preset: str,
    captions: Sequence[str],
    dialogues: Sequence[str],
    settings: Sequence[str] = (),
    like: Path | None = None,
) -> Path:
    """Train both stages; return the run folder of the second.

    Args:
        options: data and ranks.
        folder: of both runs.
        preset: what is trained.
        captions: names of the data of MM-PT.
        dialogues: of MM-IT.
        settings: options of both.
        like: folder of other runs, as many steps as which are trained; else each sample is seen as
            often as the preset says.
    """
    runs = {"pt": folder / "pt", "sft": folder / "sft"}
    for (stage, run_folder), names in zip(runs.items(), (captions, dialogues), strict=True):
        epochs = system(PRESET).stage(stage).epochs
        length = ["--epochs", str(epochs)]
        if like is not None:
            steps = read_metrics(like / stage)[-1]["step"]
            length = ["--epochs", str(_MANY * epochs), "--max-steps", str(steps)]
        train(
            stage,
            preset,
            [options.output.resolve() / name for name in names],
            run_folder,
            ranks=options.ranks,
            init_from=runs["pt"] if stage == "sft" else None,
            extra=(*settings, *length),
        )
    return runs["sft"]


def _judged(out: Path, run_folder: Path, scale: float | None) -> dict[str, float]:
    """Return the share of accepted replies by task."""
    replies = run_folder / ("generated" if scale is None else f"generated-{scale:g}")
    command = pipeline_command("generate", "--run", run_folder, "--output", replies)
    command += ["--data", str(out / "held_out_requests")]
    command += [] if scale is None else ["--guidance-scale", str(scale)]
    call(command)
    scores = judge_replies(out / "held_out_requests", replies)
    return {task: one["judged"] for task, one in scores.items()}


def _answers(run_folder: Path, out: Path) -> dict[str, float]:
    return {"questions": understanding(run_folder, out / "questions")["held_out"]}


def _losses_table(losses: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    columns = [f"{name}, {guidance}" for name, both in losses.items() for guidance in both]
    table = Table("task", *columns, title="held-out requests fulfilled")
    shares = [scores for both in losses.values() for scores in both.values()]
    for task in shares[0]:
        table.add_row(task, *(f"{scores[task]:.1%}" for scores in shares))
    return table


def _models_table(one: Mapping[str, float], alone: Mapping[str, float]) -> Table:
    table = Table("task", "one model", "trained for it alone", title="one model for both")
    for task in one:
        table.add_row(task, f"{one[task]:.1%}", f"{alone[task]:.1%}")
    return table


if __name__ == "__main__":
    main(run)
