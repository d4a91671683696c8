"""Parameters of every preset at full size, compared with those that its paper publishes.

    python benchmarks/params.py [PRESET ...]

Each system is built on the meta device, without weights, for MM-PT and for SFT; that takes a minute
or two and no accelerator. Prints a table of the components, a table of the published figures with
their sources, and as the last line one JSON object. A figure that is neither within 1 % nor equal
when rounded as published needs an explanation; one without is an error (exit status 1). For details
of the sources see docs/systems.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

from benchmarks.published_params import PUBLISHED, Published
from model.build import build_on_meta
from model.freeze import set_trainable
from model.presets import PRESETS, system
from model.spec import ModelSpec, Stage
from pipeline.forecast.plan import components as trained_components

NEAR = 0.01
STAGES = ("pt", "sft")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A published figure and ours.

    Args:
        preset, what: the system, and its component or quantity.
        ours, published: parameters, or a share where `what` says so.
        ratio: ours / published.
        verdict: how they agree, or why they differ.
        source: of the published figure.
    """

    preset: str
    what: str
    ours: float
    published: float
    ratio: float
    verdict: str
    source: str


def measure(name: str) -> dict[str, dict[str, float]]:
    """Return by stage the parameters of each component, their total and the trainable ones."""
    whole = system(name)
    return {stage: counts(whole.model, whole.stage(stage)) for stage in STAGES}


def counts(spec: ModelSpec, stage: Stage) -> dict[str, float]:
    """Return a model's parameters by the names in `Published.what`.

    A P-Former that only provides training targets is not counted.
    """
    stage = replace(stage, reference=None)
    model = build_on_meta(spec, stage)
    set_trainable(model, stage.trainable)
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    components = {"fusion": 0, **trained_components(model, stage)}
    return {
        **components,
        "total": sum(components.values()),
        "trainable": trainable,
        "trainable / backbone": trainable / components["backbone"],
    }


def compare(figure: Published, measured: Mapping[str, Mapping[str, float]]) -> Compared:
    """Return a published figure compared with ours."""
    ours = measured[figure.stage][figure.what]
    ratio = ours / figure.value
    if abs(ratio - 1) <= NEAR:
        verdict = "within 1 %"
    elif figure.rounded(ours) == figure.value:
        verdict = "equal when rounded as published"
    else:
        verdict = figure.why or "NOT EXPLAINED"
    return Compared(
        preset=figure.preset,
        what=f"{figure.what} ({figure.stage})",
        ours=ours,
        published=figure.value,
        ratio=ratio,
        verdict=verdict,
        source=figure.source,
    )


def shown(value: float) -> str:
    """Return a count in millions or billions, or a share in per cent."""
    if value < 1:
        return f"{value:.2%}"
    return f"{value / 1e9:.2f} B" if value >= 1e9 else f"{value / 1e6:.2f} M"


def component_table(measured: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """Return the table of components, one row per preset."""
    columns = ("encoder", "projector", "backbone", "fusion", "total")
    table = Table("preset", *columns, "trainable in PT", "in SFT", title="parameters")
    for name, stages in measured.items():
        sizes = [shown(stages["pt"][column]) if stages["pt"][column] else "" for column in columns]
        trainable = [
            f"{shown(stages[stage]['trainable'])} "
            f"({stages[stage]['trainable'] / stages[stage]['total']:.2%})"
            for stage in STAGES
        ]
        table.add_row(name, *sizes, *trainable)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def figure_table(compared: Sequence[Compared], without: Sequence[str]) -> Table:
    """Return the table of published figures; `without` lists the presets that have none."""
    table = Table("preset", "what", "ours", "published", "ratio", "verdict", "source")
    for row in compared:
        table.add_row(
            row.preset,
            row.what,
            shown(row.ours),
            shown(row.published),
            f"{row.ratio:.3f}",
            row.verdict,
            row.source,
        )
    table.caption = f"no published figures: {', '.join(without)}" if without else None
    return table


def main(names: Sequence[str]) -> int:
    """Print the tables and the JSON object; return the exit status."""
    published = [name for name in PRESETS if not name.startswith("digits")]
    chosen = list(names) or published
    measured = {name: measure(name) for name in chosen}
    compared = [
        compare(figure, measured[figure.preset]) for figure in PUBLISHED if figure.preset in chosen
    ]
    with_figures = {row.preset for row in compared}
    console = Console(width=200)
    console.print(component_table(measured))
    console.print(figure_table(compared, [name for name in chosen if name not in with_figures]))
    unexplained = [row for row in compared if row.verdict == "NOT EXPLAINED"]
    agree = [row for row in compared if row.verdict.startswith(("within", "equal"))]
    result = {
        "presets": measured,
        "figures": [asdict(row) for row in compared],
        "agree": len(agree),
        "explained": len(compared) - len(agree) - len(unexplained),
        "unexplained": len(unexplained),
    }
    sys.stdout.write(json.dumps(result) + "\n")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
