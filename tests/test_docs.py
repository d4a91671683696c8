"""The documentation: commands are accepted by the programs that they call, links lead somewhere.

Commands stand in fenced blocks marked `sh`, or `console` where output follows a `$ ` prompt. They
are not run here but parsed, each by the option parser of the very program that it names.
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import tyro

import etl.cli
from etl.digits.records import dialogue_sample
from model.batch import IGNORED
from model.build import build_tokenizer
from model.presets import PRESETS, system
from pipeline.cli import COMMANDS as PIPELINE_COMMANDS
from pipeline.cli import run as run_pipeline
from pipeline.config.run_config import TrainOptions, changed_preset, resolve
from pipeline.data.tokenize import SampleTokenizer

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        ROOT / "slurm" / "README.md",
        ROOT / "ds_configs" / "README.md",
    )
)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
OURS = re.compile(r"(etl|model|pipeline|tests|benchmarks|slurm|ds_configs|docs)/[\w./-]*")
ELSEWHERE = {
    *("apt-get", "cat", "cd", "cp", "curl", "export", "git", "head", "kill", "less", "ls", "mkdir"),
    *("mv", "pip", "pytest", "pre-commit", "rm", "sed", "sinfo", "squeue", "scancel", "scontrol"),
    *("source", "sudo", "tail", "tee", "unset", "wait", "xdg-open"),
}
"""Programs that are not ours; a first word that is neither one of them nor ours is a mistake."""
SBATCH = {
    *("--account", "--cpus-per-task", "--gpus-per-node", "--nodes", "--no-requeue", "--ntasks"),
    *("--ntasks-per-node", "--parsable", "--partition", "--time", "--wait", "--wrap"),
}

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
FOREIGN_OPTIONS = {
    *("--address", "--working-dir"),  # of ray job submit
    *("--hostfile", "--master_port", "--num_accelerators"),  # of deepspeed
    *("--exclusive", "--mem", "--signal"),  # of sbatch, in our scripts
    "--dist",  # of pytest-xdist
    "--index-url",  # of pip
}
BENCHMARKS = str(ROOT / "benchmarks")


def relative(path):
    return str(path.relative_to(ROOT))


@dataclass(frozen=True)
class Command:
    """One command of a page, as words; assignments before it are left out."""

    page: str
    line: int
    words: tuple[str, ...]

    def __str__(self):
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"


def blocks(page):
    """Yield language, first line and text of each fenced block, without its indentation."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        indent, language, body = found.groups()
        lines = (line.removeprefix(indent) for line in body.splitlines())
        yield language, text.count("\n", 0, found.start()) + 2, "\n".join(lines)


def commands(page):
    """Return the commands of a page's blocks; those after `&&`, `;` or `|` are commands, too."""
    found = []
    for language, first, body in blocks(page):
        if language not in ("sh", "console"):
            continue
        for line, text in logical_lines(body, transcript=language == "console"):
            for words in simple_commands(text):
                found.append(Command(relative(page), first + line, tuple(words)))
    return found


def logical_lines(body, *, transcript):
    """Yield the lines of a block with continuations joined; of a transcript those after `$ `."""
    joined, start = "", 0
    for number, line in enumerate(body.splitlines()):
        if not joined:
            if transcript and not line.startswith("$ "):
                continue
            start = number
        joined += line.removeprefix("$ ") if transcript else line
        if joined.endswith("\\"):
            joined = joined[:-1]
            continue
        yield start, joined
        joined = ""


def simple_commands(text):
    """Yield the words of each simple command in a line of shell, redirections left out."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    words, skip = [], False
    for word in lexer:
        if set(word) <= set("<>"):
            skip = True
        elif set(word) <= set(";&|"):
            yield from [words] if words else []
            words = []
        elif skip:
            skip = False
        elif words or not re.match(r"[A-Z_]+=", word):
            words.append(word)
    if words:
        yield words


class Parsed(BaseException):
    """Raised in place of what a program would do with its options."""

    def __init__(self, options):
        super().__init__()
        self.options = options


@pytest.fixture
def parsing(monkeypatch):
    """Let every program stop once its options are parsed."""
    read_options, read_arguments = tyro.cli, argparse.ArgumentParser.parse_args

    def stop_after(parser):
        def parse(*args, **keywords):
            raise Parsed(parser(*args, **keywords))

        return parse

    monkeypatch.setattr(etl.cli.tyro, "cli", stop_after(read_options))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop_after(read_arguments))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # programs set handlers first thing
    monkeypatch.setattr(sys, "path", [*sys.path, BENCHMARKS])  # they import each other
    monkeypatch.chdir(ROOT)


def options_of(program, words):
    """Return what a program parses its words to; it must not run."""
    try:
        program(list(words))
    except Parsed as parsed:
        return parsed.options
    raise AssertionError("it does not parse its options")


@cache
def script(path):
    """Import a script that is not in a package."""
    name = f"script_{path.stem}"  # `etl` is one, too
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there for their module
    spec.loader.exec_module(module)
    return module


def check_pipeline(words):
    """Parse a command of the pipeline, and resolve the preset with what is set in it."""
    options = options_of(run_pipeline, words)
    preset = getattr(options, "preset", None)
    if preset is None or (Path(preset).suffix and not (ROOT / preset).is_file()):
        return  # a file of the reader's
    if isinstance(options, TrainOptions):
        resolve(options, words[0])
    else:
        changed_preset(options.preset, options.scale, options.set)


def check_etl(name, words):
    assert (ROOT / "etl" / f"{name}.py").is_file(), f"no etl/{name}.py"
    words = list(words)
    if "--decontaminate" in words:  # looks whether its files are there
        words[words.index("--decontaminate") + 1] = "tests/etl/formats/aishell1.txt"
    options_of(importlib.import_module(f"etl.{name}").run, words)


def check_python(words):
    match words:
        case ["-m", "pipeline", *rest]:
            check_pipeline(rest)
        case ["-m", module, *rest] if module.startswith(("etl.", "pipeline.")):
            inside = module if hasattr(importlib.import_module(module), "run") else ""
            options_of(importlib.import_module(inside or f"{module}.__main__").run, rest)
        case ["-m" | "-c", *_]:
            pass
        case ["benchmarks/params.py", *names]:
            assert set(names) <= set(PRESETS)
        case [path, *rest] if path.startswith("etl/"):
            check_etl(Path(path).stem, rest)
        case [path, *rest] if (ROOT / path).is_file():
            module = script(ROOT / path)
            if hasattr(module, "run"):
                options_of(module.run, rest)
            else:
                options_of(lambda words: with_argv(module.main, path, words), rest)
        case _:
            raise AssertionError(f"python {shlex.join(words)}: not known here")


def with_argv(main, path, words):
    before, sys.argv = sys.argv, [path, *words]
    try:
        main()
    finally:
        sys.argv = before


def check_deepspeed(words):
    runner = importlib.import_module("deepspeed.launcher.runner")
    launcher = options_of(runner.parse_args, words)
    assert launcher.module, "want --module"
    assert launcher.user_script == "pipeline"
    check_pipeline(launcher.user_args)


def check_sbatch(words):
    number = next(n for n, word in enumerate(words) if not word.startswith("-"))
    names = {word.partition("=")[0] for word in words[:number]}
    assert names <= SBATCH, f"{names - SBATCH}: not an option that is known here"
    path, *rest = words[number:]
    assert (ROOT / path).is_file() or (ROOT / "slurm" / Path(path).name).is_file(), path
    match Path(path).stem, rest:
        case "etl", [name, *options]:
            check_etl(name, options)
        case stage, _:
            check_pipeline([stage, *rest])


def check_ray(words):
    if words[:2] == ["job", "submit"]:
        submit = importlib.import_module("ray.dashboard.modules.job.cli").submit
        submitted = list(submit.make_context("submit", list(words[2:])).params["entrypoint"])
        assert submitted[0] == "python"
        check_python(submitted[1:])
    elif words[:1] == ["start"]:
        importlib.import_module("ray.scripts.scripts").start.make_context("start", words[1:])
    else:
        assert words[:2] in (["job", "list"], ["job", "logs"], ["job", "stop"], ["stop"])


def check_make(words):
    text = (ROOT / "Makefile").read_text()
    for word in words:
        name, equals, _ = word.partition("=")
        found = rf"^{name} \??=" if equals else rf"^{name}:"
        assert re.search(found, text, re.MULTILINE), f"make {word}"


def check_local_slurm(words):
    usage = subprocess.run(
        [ROOT / "slurm" / "local.sh", "--help"], capture_output=True, text=True, check=True
    ).stdout
    names = [word.partition("=")[0] for word in words if word.startswith("-")]
    assert words[0] in ("up", "down")
    assert all(name in usage for name in names), names


CHECKS = {
    "deepspeed": check_deepspeed,
    "make": check_make,
    "python": check_python,
    "ray": check_ray,
    "sbatch": check_sbatch,
    "local.sh": check_local_slurm,
}
COMMANDS = [command for page in PAGES for command in commands(page)]


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_accepted(command, parsing):
    program, *words = command.words
    check = CHECKS.get(Path(program).name)
    if check is None:
        assert Path(program).name in ELSEWHERE, f"{program}: neither ours nor known"
        return
    check(words)


def test_pages_have_commands_of_every_program():
    used = {Path(command.words[0]).name for command in COMMANDS}
    assert used >= set(CHECKS)
    assert len(COMMANDS) > 40


@pytest.mark.parametrize(
    "text",
    [
        "python -m pipeline plan digits --stage pt --gpu 8",
        "python -m pipeline plan digit --stage pt",
        "python -m pipeline show digits --set model.backbone.layer=3",
        "python etl/laion.py --input a --output b --num-workers 3",
        "python etl/loin.py --input a --output b",
        "deepspeed --num_acelerators 2 --module pipeline pt digits --data a --output b",
        "deepspeed --num_accelerators 2 --module pipeline pt digits --data a --keep 3 --output b",
        "sbatch --node=2 slurm/pt.sh digits --data a --output b",
        "sbatch slurm/pt.sh digits --data a --output b --max-step 1",
        "ray job submit --workingdir . -- python etl/laion.py --input a --output b",
        "ray job submit -- python etl/laion.py --inputs a --output b",
        "make quickstrat",
        "python benchmarks/etl.py --imges 3",
    ],
)
def test_a_mistake_in_a_command_is_noticed(text, parsing):
    program, *words = next(simple_commands(text))
    with pytest.raises((Exception, SystemExit)):
        CHECKS[program](words)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_commands_stand_in_fenced_blocks(page):
    outside = FENCE.sub("", page.read_text(encoding="utf-8"))
    ours = [line for line in outside.splitlines() if re.match(r" {4,}(\$|python|make|ray) ", line)]
    assert not ours
    assert all(language for language, _, _ in blocks(page)), "a block without a language"


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page):
    for target in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def anchors(file):
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", file.read_text("utf-8")), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in plain}


def with_options(pattern):
    """Return the scripts that parse options."""
    return [
        relative(path)
        for path in sorted(ROOT.glob(pattern))
        if "parse(Options" in path.read_text() or "ArgumentParser" in path.read_text()
    ]


@cache
def known_options():
    """Return the options that the help of any of our programs names."""
    words = [["-m", "pipeline", name, "--help"] for name in PIPELINE_COMMANDS]
    words += [[f"etl/{path.name}", "--help"] for path in sorted((ROOT / "etl").glob("*.py"))]
    words += [["-m", module, "--help"] for module in ("etl.digits", "pipeline.quickstart")]
    words += [[path, "--help"] for path in with_options("benchmarks/*.py")]
    words = [line for line in words if line[0] not in ("etl/__init__.py", "etl/cli.py")]
    help_text = io.StringIO()
    for line in words:
        with contextlib.redirect_stdout(help_text), contextlib.suppress(SystemExit):
            check_python(line)
    usage = (ROOT / "slurm" / "local.sh").read_text()
    return set(OPTION.findall(help_text.getvalue() + usage)) | SBATCH | FOREIGN_OPTIONS


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_named_options_exist(page, monkeypatch):
    if page.name in ("CHANGELOG.md", "systems.md"):
        return  # they name old ones, and those of other projects' scripts
    monkeypatch.setattr(sys, "path", [*sys.path, BENCHMARKS])
    for code in CODE.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        for option in OPTION.findall(code):
            assert option in known_options(), code


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_named_files_and_targets_exist(page):
    """A path in backticks is one of the repository, unless it has a placeholder in it."""
    for code in CODE.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if target := re.match(r"make ([a-z-]+)", code):
            check_make([target[1]])
        if OURS.fullmatch(code) and not re.search(r"[A-Z]{3,}", code.replace("README", "")):
            assert (ROOT / code).exists(), code


def test_the_sample_of_the_readme_is_what_the_code_makes_of_it():
    """Token by token: the spans of targets, and of what lies between them, in order."""
    sample, spec = dialogue_sample(0, 2), system("digits")
    tokenizer = build_tokenizer(spec.model, weights="pretrained")
    tokenize = SampleTokenizer(
        spec.model, tokenizer, prompt=spec.sft.prompt, max_tokens=spec.sft.max_tokens
    ).tokenize
    tokens = tokenize(sample.id, sample.turns, ["image"])
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = {
        name: re.search(rf"^{name} +(.*)$", text, re.MULTILINE)[1].replace("0 ×36", "0×36").split()
        for name in ("token", "id", "label")
    }
    position = 0
    for word, first, label in zip(*rows.values(), strict=True):
        assert tokens.ids[position] == int(re.match(r"\d+", first)[0])
        assert tokens.labels[position] == (int(label) if label.isdigit() else IGNORED)
        if word != r"\n" and "image" not in word:
            assert tokenizer.decode([tokens.ids[position]]).strip() == word.rstrip("…")
        position += 36 if "×36" in word else 1
        while word.endswith("…") and tokens.labels[position] == IGNORED:
            position += 1
    assert position == len(tokens.ids) == 60
    medium = sample.media[0]
    assert f"{medium.mime}, 96×96, {len(medium.data):,} bytes" in text
    assert f"sha256 {medium.sha256[:8]}" in text


def test_the_index_has_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name
