"""`python -m pipeline export`: a trained run as a folder for others to use."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from etl.cli import UserError, parse
from model.convert.layouts import find_layout
from model.spec import SpecError
from model.spec.peft import QLora
from model.spec.system import InitStage
from pipeline.checkpoint.checkpoints import checkpoint_weights
from pipeline.config.run_config import RunConfig, read_run
from pipeline.convert.imported_run import write_imported_run
from pipeline.convert.model_card import write_model_card
from pipeline.convert.self_contained import write_self_contained
from pipeline.convert.source_record import imported_components
from pipeline.convert.trained_model import Adapters, load_trained_model
from pipeline.convert.transformers_layout import write_layout

Layout = Literal["auto", "transformers", "mmloom"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a trained run as a folder for others: of transformers, or for `model.load`."""

    run: Path
    """The run folder of a trained or imported run."""
    checkpoint: str = "newest"
    """`newest`, `best` (by the loss of its validations), or the step of one."""
    output: Path
    """The folder to write; must not exist yet."""
    layout: Layout = "auto"
    """`transformers`: a checkpoint with its processor, which transformers loads without mmloom.
    `mmloom`: a self-contained folder, which `from model import load` opens. `auto`: the first where
    transformers has a class for the model, else the second."""
    adapters: Adapters = "auto"
    """`merged`: low-rank adapters are merged into the weights that they adapt. `separate`: adapters
    are in OUTPUT/adapter, which peft reads unless they are Houlsby's. `auto`: merged where that is
    possible, else parts of the model."""


def export(args: Sequence[str]) -> int:
    """Run the command; returns the exit code."""
    options = parse(ExportOptions, prog="python -m pipeline export", args=args)
    line = export_run(
        options.run,
        options.output,
        checkpoint=options.checkpoint,
        layout=options.layout,
        adapters=options.adapters,
    )
    sys.stdout.write(line + "\n")
    return 0


def export_run(
    run: Path,
    output: Path,
    *,
    checkpoint: str = "newest",
    layout: Layout = "auto",
    adapters: Adapters = "auto",
) -> str:
    """Write a run for others; the folder appears complete or not at all.

    Returns:
        A line that says in which layout, and the number and size of the tensors.

    Raises:
        UserError, SpecError: no such run or checkpoint, an output that exists, or a model that the
            layout cannot express.
    """
    if output.exists():
        raise UserError(f"{output}: exists already; choose another --output, or remove it")
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder")
    config = read_run(run)
    if isinstance(config.settings, InitStage):
        raise UserError(
            f"{run}: a run of stage init is not a whole model; want one of pt, sft or rlhf"
        )
    weights = checkpoint_weights(run, checkpoint)
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    line = _write(config, weights, partial, layout, adapters)
    library = "mmloom" if line.startswith("self-contained") else "transformers"
    usage = _usage(output, line)
    write_model_card(run, config, weights.parent, partial, usage=usage, library=library)
    partial.rename(output)
    return line


def _write(
    config: RunConfig, weights: Path, output: Path, layout: Layout, adapters: Adapters
) -> str:
    """Write all but the model card, in the layout that was asked for or that the model allows."""
    components = imported_components(config)
    # QLoRA is merged into the values of its four bits, which the imported tensors do not have.
    as_imported = layout != "mmloom" and adapters != "separate"
    if components is not None and as_imported and not isinstance(config.settings.peft, QLora):
        return "as imported: " + write_imported_run(config, components, weights, output)
    found, reason = None, ""
    if layout != "mmloom":
        try:
            found = find_layout(config.system.model, config.settings)
        except SpecError as error:
            if layout == "transformers":
                raise
            reason = f" ({error})"
    model = load_trained_model(config, weights, adapters)
    if found is not None:
        written = write_layout(found, model, output, weights=config.weights)
        without = f" (it takes no {', '.join(found.left_out)})" if found.left_out else ""
        return f"as {found.architecture}{without}: {written}"
    written = write_self_contained(model, output, weights=config.weights, seed=config.seed)
    return f"self-contained{reason}: {written}"


def _usage(output: Path, line: str) -> str:
    """Return the Python that opens an exported folder."""
    if line.startswith("self-contained"):
        return (
            "from model import load\n\n"
            f'spec, module, tokenizer = load("{output.name}")\n\n'
            "# To ask it about files:\n"
            "from pipeline.evaluate.assistant import Assistant\n\n"
            f'print(Assistant.open("{output.name}").ask("What is this?"))\n'
        )
    return (
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
        f'processor = AutoProcessor.from_pretrained("{output.name}")\n'
        f'model = AutoModelForImageTextToText.from_pretrained("{output.name}")\n'
    )
