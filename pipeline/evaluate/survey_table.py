"""Table 2 of the survey MM-LLMs (Zhang et al. 2024, arXiv:2401.13601v5), and results under it.

`*` in the published table: images of the benchmark's training split were seen in training. `‡`:
re-implemented test results of ShareGPT4V (Chen et al. 2023). The survey collects its figures from
other papers, so that a column can hold different splits and protocols: HM, for example, is the AUC
of BLIP-2 and InstructBLIP, and the accuracy of MiniGPT-v2. Most of SEED-I are SEED-Bench's averages
of images and videos together, as its leaderboard has them (BLIP-2 46.4, InstructBLIP 53.4,
LLaVA-1.5 61.6; of the images alone 49.7, 58.8 and 68.2); those with ShareGPT4V are of the images.

Compared with other publications, and equal: SEED-I of these three with that leaderboard
(AILab-CVC/SEED-Bench_Leaderboard, file/result.csv), and 14 figures of MMB, MME-P and LLaVA-W of
eight rows with the comparison in *Honeybee* (Cha et al. 2023, arXiv:2312.06742).
"""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

COLUMNS = (
    *("OKVQA", "IconVQA", "VQAv2", "GQA", "VizWiz", "SQA-I", "VQA-T", "POPE", "MME-P", "MME-C"),
    *("MMB", "MMB-CN", "SEED-I", "LLaVA-W", "MM-Vet", "Q-Bench", "HM", "VSR"),
)

_PUBLISHED = """
Flamingo         | Chinchilla-7B   | 44.7 -    -     -     28.8 -    -    -    -      -      -    -    -    -    -    -    57.0 31.8
BLIP-2           | Flan-T5-XXL     | 45.9 40.6 65.0  44.7  19.6 61.0 42.5 85.3 1293.8 290.0  -    -    46.4 38.1 22.4 -    53.7 50.9
LLaVA            | Vicuna-13B      | 54.4 43.0 -     41.3  -    -    38.9 -    -      -      -    -    -    -    -    -    -    51.2
MiniGPT-4        | Vicuna-13B      | 37.5 37.6 -     30.8  -    -    19.4 -    -      -      -    -    -    -    -    -    -    41.6
InstructBLIP     | Vicuna-7B       | -    -    -     49.2  34.5 60.5 50.1 -    -      -      36.0 23.7 53.4 60.9 26.2 56.7 -    -
InstructBLIP     | Vicuna-13B      | -    44.8 -     49.5  33.4 63.1 50.7 78.9 1212.8 291.8  -    -    -    58.2 25.6 -    57.5 52.1
Shikra           | Vicuna-13B      | 47.2 -    77.4* -     -    -    -    -    -      -      58.8 -    -    -    -    54.7 -    -
IDEFICS-9B       | LLaMA-7B        | -    -    50.9  38.4  35.5 -    25.9 -    -      -      48.2 25.2 -    -    -    -    -    -
IDEFICS-80B      | LLaMA-65B       | -    -    60.0  45.2  36.0 -    30.9 -    -      -      54.5 38.1 -    -    -    -    -    -
Qwen-VL          | Qwen-7B         | -    -    78.8* 59.3* 35.2 67.1 63.8 -    -      -      38.2 7.4  56.3 -    -    59.4 -    -
Qwen-VL-Chat     | Qwen-7B         | -    -    78.2* 57.5* 38.9 68.2 61.5 -    1487.5 360.7  60.6 56.7 58.2 -    -    -    -    -
LLaVA-1.5        | Vicuna-1.5-7B   | -    -    78.5* 62.0* 50.0 66.8 58.2 85.9 1510.7 316.1‡ 64.3 58.3 58.6 63.4 30.5 58.7 -    -
+ShareGPT4V      | Vicuna-1.5-7B   | -    -    80.6  -     57.2 68.4 -    -    1567.4 376.4  68.8 62.2 69.7 72.6 37.6 63.4 -    -
LLaVA-1.5        | Vicuna-1.5-13B  | -    -    80.0* 63.3* 53.6 71.6 61.3 85.9 1531.3 295.4‡ 67.7 63.6 61.6 70.7 35.4 62.1 -    -
MiniGPT-v2       | LLaMA-2-Chat-7B | 56.9 47.7 -     60.3  30.3 -    51.9 -    -      -      -    -    -    -    -    -    58.2 60.6
MiniGPT-v2-Chat  | LLaMA-2-Chat-7B | 55.9 49.4 -     58.8  42.4 -    52.3 -    -      -      -    -    -    -    -    -    59.5 63.3
VILA-7B          | LLaMA-2-7B      | -    -    79.9* 62.3* 57.8 68.2 64.4 85.5 1533.0 -      68.9 61.7 61.1 69.7 34.9 -    -    -
VILA-13B         | LLaMA-2-13B     | -    -    80.8* 63.3* 60.6 73.7 66.6 84.2 1570.1 -      70.3 64.3 62.8 73.0 38.8 -    -    -
+ShareGPT4V      | LLaMA-2-13B     | -    -    80.6* 63.2* 62.4 73.1 65.3 84.8 1556.5 -      70.8 65.4 61.4 78.4 45.7 -    -    -
"""  # noqa: E501 - the lines of the published table


def published_rows() -> list[tuple[str, str, dict[str, str]]]:
    """Return (model, backbone, column → figure as printed) of each row of the published table."""
    rows = []
    for line in _PUBLISHED.strip().splitlines():
        model, backbone, figures = (part.strip() for part in line.split("|"))
        cells = zip(COLUMNS, figures.split(), strict=True)
        rows.append((model, backbone, {name: cell for name, cell in cells if cell != "-"}))
    return rows


def survey_table(results: Mapping[str, float], name: str) -> Table:
    """Return the published rows with figures in the results' columns, and the results below.

    Args:
        results: column → figure, in the column's unit.
        name: of the last row.
    """
    columns = [column for column in COLUMNS if column in results]
    title = "Table 2 of the survey MM-LLMs (arXiv:2401.13601v5)"
    caption = "* training images seen · ‡ ShareGPT4V's re-implementation"
    table = Table("model", "backbone", *columns, title=title, caption=caption)
    for model, backbone, figures in published_rows():
        if figures.keys() & results.keys():
            table.add_row(model, backbone, *(figures.get(column, "–") for column in columns))
    table.add_section()
    table.add_row(name, "", *(f"{results[column]:.1f}" for column in columns))
    return table
