"""What is asked of each benchmark's published files, and predictions as its server takes them."""

import json
from pathlib import Path
from typing import Any

import pytest

from etl.cli import UserError
from pipeline.evaluate.benchmark import Benchmark, BenchmarkSamples, check_layout, read_questions
from pipeline.evaluate.benchmark_results import OFFICIAL, save_official
from pipeline.evaluate.benchmarks import BENCHMARKS, find_benchmark
from pipeline.evaluate.prediction_files import read_predictions
from pipeline.evaluate.score import check_answers
from pipeline.evaluate.survey_table import COLUMNS, published_rows
from tests.pipeline.evaluate.benchmarks.test_official_figures import RECORDED, write

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."

FIRST = {
    "okvqa": ("1000", "Is it raining?" + SHORT, ["val2014/COCO_val2014_000000000001.jpg"]),
    "vqav2": ("1000", "Is it raining?" + SHORT, ["val2014/COCO_val2014_000000000001.jpg"]),
    "gqa": ("201", "What color is the cup?" + SHORT, ["images/n1.jpg"]),
    "vizwiz": (
        "VizWiz_val_00000000.jpg",
        "Is it raining?\nWhen the provided information is insufficient, respond with"
        " 'Unanswerable'." + SHORT,
        ["val/VizWiz_val_00000000.jpg"],
    ),
    "textvqa": ("5000", "Is it raining?" + SHORT, ["train_images/img0.jpg"]),
    "iconqa": (
        "7",
        "How many, 0?\nA. The first image.\nB. The second image." + LETTER,
        [f"iconqa/test/choose_img/7/{name}.png" for name in ("image", "choice_0", "choice_1")],
    ),
    "scienceqa": ("1", "Context: A hint.\nWhich one, 0?\nA. choice 0\nB. choice 1" + LETTER, []),
    "pope": (
        "random/1",
        "Is there a thing 0 in the image?" + SHORT,
        ["val2014/COCO_val2014_000000000000.jpg"],
    ),
    "mme": (
        "existence/0/1",
        "Is it existence 0a? Please answer yes or no." + SHORT,
        ["existence/0.jpg"],
    ),
    "mmbench": ("1", "Which is it?\nA. cat\nB. dog" + LETTER, None),
    "mmbench_cn": ("1", "Which is it?\nA. cat\nB. dog\n请直接回答选项字母。", None),
    "seedbench": (
        "100",
        "What 0?\nA. a 0\nB. b 0\nC. c 0\nD. d 0" + LETTER,
        ["SEED-Bench-image/0_1"],
    ),
    "llava_bench": ("0", "What is shown, 0?", ["images/000.jpg"]),
    "mmvet": ("v1_0", "What is it, 0?", ["images/v1_0.png"]),
    "qbench": ("0", "How is it, 0?\nA. High\nB. Low" + LETTER, ["images_llvisionqa/0.jpg"]),
    "hateful_memes": (
        "8291",
        "This is an image writting 'its their character'. Is this image hateful? Answer yes or no."
        " Answer:",
        ["img/42000.png"],
    ),
    "vsr": (
        "1",
        "Based on the image, is this statement true or false? The cat is under the dog.",
        ["images/000000000000.jpg"],
    ),
}


def data_of(name: str, folder: Path) -> Path:
    record = json.loads((RECORDED[0].parent / f"{name}.json").read_text())
    write(folder, record["files"])
    return folder


def test_all_columns_of_the_survey_have_a_benchmark() -> None:
    assert {one.name for one in BENCHMARKS} == FIRST.keys()
    columns = [headline.column for one in BENCHMARKS for headline in one.headlines]
    assert sorted(columns) == sorted(COLUMNS)
    assert len(published_rows()) == 19
    rows = {(model, backbone): figures for model, backbone, figures in published_rows()}
    assert rows["LLaVA-1.5", "Vicuna-1.5-13B"]["MME-P"] == "1531.3"
    assert rows["MiniGPT-v2-Chat", "LLaMA-2-Chat-7B"]["VSR"] == "63.3"


@pytest.mark.parametrize("name", FIRST)
def test_the_first_question(name: str, tmp_path: Path) -> None:
    benchmark = find_benchmark(name)
    question = benchmark.read(data_of(name, tmp_path))[0]
    identity, prompt, images = FIRST[name]
    assert (question.id, benchmark.prompt(question)) == (identity, prompt)
    assert images is None or list(question.images) == images


@pytest.mark.parametrize("name", FIRST)
def test_official_predictions_are_read_back(name: str, tmp_path: Path) -> None:
    benchmark = find_benchmark(name)
    questions = benchmark.read(data_of(name, tmp_path / "data"))
    answered = [(one, benchmark.prediction(one, one.answer)) for one in questions]
    save_official(benchmark, answered, tmp_path)
    (path,) = (tmp_path / OFFICIAL).iterdir() if name != "pope" else (tmp_path / OFFICIAL,)
    found = read_predictions(benchmark, path, questions)
    assert [question.id for question, _ in found] == [one.id for one in questions]
    if name not in ("okvqa", "vqav2", "vizwiz"):  # whose answers are written normalised
        assert [answer for _, answer in found] == [answer for _, answer in answered]
    if benchmark.grading is None:
        best = {"MME-P": 2000, "MME-C": 800}
        figures = benchmark.survey_figures(benchmark.score(questions, {q.id: a for q, a in found}))
        normalised = name in ("okvqa", "vqav2", "vizwiz", "textvqa")
        for column, figure in figures.items():
            assert (60 if normalised else best.get(column, 100) - 1e-9) < figure, column


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda one: one.name)
def test_an_empty_folder_lacks_everything(benchmark: Benchmark, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        check_layout(benchmark, tmp_path)
    assert "\n" not in str(caught.value)
    for needed in benchmark.layout:
        assert needed.paths[0] in str(caught.value)
        assert needed.source in str(caught.value)


def test_a_limit_takes_whole_units(tmp_path: Path) -> None:
    data = data_of("mmbench", tmp_path)
    samples = BenchmarkSamples(find_benchmark("mmbench"), data, 6)
    # A question of two options, and one of three.
    units = [question.unit for question in samples.questions]
    assert [(unit, units.count(unit)) for unit in dict.fromkeys(units)] == [("1", 2), ("2", 3)]
    with pytest.raises(UserError, match="--limit: 1, want at least 2, the questions of unit '1'"):
        BenchmarkSamples(find_benchmark("mmbench"), data, 1)


def test_ranked_options_are_not_shown(tmp_path: Path) -> None:
    data = data_of("mmbench", tmp_path / "mmbench")
    ranked = BenchmarkSamples(find_benchmark("mmbench"), data, ask="likelihood")
    assert ranked[0].turns[0].text == "<image>\nWhich is it?"
    iconqa = find_benchmark("iconqa")
    question = iconqa.read(data_of("iconqa", tmp_path / "iconqa"))[0]
    start = "Based on the image, respond to this question with a short answer: "
    assert iconqa.ranked(question) == start + "How many, 0?"


def test_images_inside_a_table_are_shown(tmp_path: Path) -> None:
    samples = BenchmarkSamples(find_benchmark("mmbench"), data_of("mmbench", tmp_path))
    assert samples[0].turns[0].text.startswith("<image>\nWhich is it?\nA. cat")
    (medium,) = samples[0].media
    assert (medium.mime, medium.data[:4]) == ("image/jpeg", b"\xff\xd8\xff\xe0")
    # A rotation refers to the image of its question.
    assert samples[1].media[0].data == medium.data
    assert samples.questions[1].options == ("dog", "cat")


def test_words_found_by_ocr_are_shown(tmp_path: Path) -> None:
    data = data_of("textvqa", tmp_path)
    ocr = {"data": [{"image_id": "img0", "ocr_tokens": ["STOP", "here"]}]}
    (data / "TextVQA_Rosetta_OCR_v0.2_val.json").write_text(json.dumps(ocr))
    benchmark = find_benchmark("textvqa")
    first, second, *_ = benchmark.read(data)
    assert benchmark.prompt(first) == "Is it raining?\nReference OCR token: STOP, here" + SHORT
    assert benchmark.prompt(second) == "Is it cold?\nReference OCR token: " + SHORT


def test_a_split_without_answers_cannot_be_scored(tmp_path: Path) -> None:
    value = {"image": "VizWiz_test_00000000.jpg", "question": "What?"}
    (tmp_path / "test.json").write_text(json.dumps([value]))
    benchmark = find_benchmark("vizwiz")
    questions = benchmark.read(tmp_path)
    assert questions[0].images == ("test/VizWiz_test_00000000.jpg",)
    with pytest.raises(UserError, match="the answers of vizwiz's split 'test' are not published"):
        check_answers(benchmark, questions, tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("gqa", "p.json", [{"questionId": "201"}], "prediction 1: want an object with questionId"),
        (
            "gqa",
            "p.json",
            [{"questionId": "201", "prediction": "x"}],
            r"no answer to '202' \(8 mis",
        ),
        ("vqav2", "p.json", [{"question_id": 7, "answer": "x"}], "'7' is not a question of the"),
        ("mme", "count.txt", "0.jpg\tno tabs", r"count\.txt:1: want image, question, true answer"),
        ("mme", "count.txt", "0.jpg\twho?\tYes\tno", r"count\.txt:1: no question 'who\?' about"),
        ("vsr", "p.txt", "1\nmaybe\n", r"p\.txt:2: 'maybe', want 0 \(false\) or 1 \(true\)"),
        (
            "hateful_memes",
            "p.csv",
            "id,proba,label\n8291,2,1\n",
            "id 8291: '2 1', want a prob|no answ",
        ),
        ("pope", "random.json", '{"answer": 1}\n{}', r"random\.json:2: want an object with answer"),
        ("qbench", "p.json", [{"response": "A"}], "object 1: want img_path, question and response"),
        ("mmbench", "p.csv", "index\n1\n", "row 1: want index and prediction"),
        ("scienceqa", "p.json", {"results": []}, "want results as an object"),
        ("iconqa", "p.json", {"answers": {}}, "want an object with results"),
    ],
)
def test_malformed_predictions_are_one_line(
    name: str, file: str, content: Any, message: str, tmp_path: Path
) -> None:
    benchmark = find_benchmark(name)
    questions = benchmark.read(data_of(name, tmp_path / "data"))
    write(tmp_path, {file: content})
    with pytest.raises(UserError, match=message) as caught:
        read_predictions(benchmark, tmp_path / file, questions)
    assert "\n" not in str(caught.value)


DAMAGED = (b"", b"5", b"[5]", b'{"a": 5}', b"[null]", b"\xff\xfe\x00", b"a\tb\nc\n", b"PK\x03\x04")


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_damaged_file_is_one_line(path: Path, tmp_path: Path) -> None:
    record = json.loads(path.read_text())
    benchmark = find_benchmark(record.get("benchmark", path.stem))
    write(tmp_path / "data", record["files"])
    write(tmp_path, record["predictions"])
    questions = benchmark.read(tmp_path / "data")
    given = tmp_path / next(iter(record["predictions"]))
    sheet = [tmp_path / "predictions.xlsx"] if path.stem == "mmbench" else []
    published = tmp_path / "data" / next(iter(record["files"]))
    for content in DAMAGED:
        for file in (given, *sheet):
            file.write_bytes(content)
            with pytest.raises(UserError, match=r"^[^\n]+$"):
                benchmark.metrics(read_predictions(benchmark, file, questions))
        published.write_bytes(content)
        with pytest.raises(UserError, match=r"^[^\n]+$"):
            read_questions(benchmark, tmp_path / "data", images=False)


PUBLISHED = Path(__file__).parents[5] / "shared" / "data" / "benchmarks" / "vsr"


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no published statements in ../shared/data")
def test_the_published_statements_of_vsr() -> None:
    vsr = find_benchmark("vsr")
    questions = vsr.read(PUBLISHED)
    assert len(questions) == 1222
    always = vsr.score(questions, {question.id: "true" for question in questions})
    # The share of true statements in the zero-shot test split.
    assert always["all"]["accuracy"] == pytest.approx(0.5147, abs=5e-5)
    assert len(always) == 1 + len({question.labels["relation"] for question in questions})
