"""The job scripts under a real Slurm, with a stand-in for the program they start."""

import json
import shutil
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster.ray_cluster import DEFAULT_PORTS, is_free
from tests.cluster.slurm_cluster import SlurmCluster, await_that

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("empty_queue"),
]

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]

# An ETL job that ends when both nodes' CPUs belong to its Ray; it runs in the submitter's folder.
COUNT = """
import json, pathlib, sys, time
import ray
ray.init()
while ray.cluster_resources().get("CPU") != 2:
    time.sleep(0.1)
pathlib.Path("count.json").write_text(json.dumps(sys.argv[1:]))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository with our scripts and the stand-in, in a folder with a space in its name."""
    root = tmp_path / "a copy"
    shutil.copytree(REPOSITORY / "slurm", root / "slurm")
    (root / "pipeline").mkdir()
    (root / "pipeline" / "__init__.py").touch()
    shutil.copy(HERE / "slurm_standin.py", root / "pipeline" / "__main__.py")
    return root


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "output"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def python_on_path(slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy has no .venv, so its jobs use the caller's Python: the one that runs this."""
    path = f"{Path(sys.executable).parent}:{slurm.env['PATH']}"
    monkeypatch.setitem(slurm.env, "PATH", path)


def submit(
    slurm: SlurmCluster,
    copy: Path,
    behaviour: str,
    output: Path,
    *,
    stage: str = "pt",
    options: tuple[str, ...] = (),
) -> str:
    """`sbatch … STAGE.sh BEHAVIOUR …` from another folder than the repository's."""
    arguments = (behaviour, "--data", "no data", "--output", str(output))
    return slurm.submit(
        *options, str(copy / "slurm" / f"{stage}.sh"), *arguments, cwd=output.parent
    )


def records(output: Path) -> list[dict[str, str]]:
    return [json.loads(path.read_text()) for path in sorted(output.glob("rank-*.json"))]


def up(output: Path, ranks: int) -> None:
    await_that(f"{ranks} ranks", lambda: len(records(output)) == ranks)


def test_one_rank_on_each_node_and_they_reach_each_other(slurm, copy, output):
    job = submit(slurm, copy, "reduce", output)
    state = slurm.wait(job)
    assert state["JobState"] == "COMPLETED", slurm.output(job)
    ranks = records(output)
    assert [rank["total"] for rank in ranks] == [3, 3]
    assert [rank["SLURMD_NODENAME"] for rank in ranks] == ["node1", "node2"]
    assert [rank["RANK"] for rank in ranks] == ["0", "1"]
    for rank in ranks:
        assert rank["argv"] == ["pt", "reduce", "--data", "no data", "--output", str(output)]
        assert rank["WORLD_SIZE"] == "2"
        assert (rank["LOCAL_RANK"], rank["LOCAL_WORLD_SIZE"]) == ("0", "1")
        assert rank["MASTER_ADDR"] == "127.0.0.1"
        assert rank["MASTER_PORT"] == str(20000 + int(job) % 10000)
        assert (rank["DS_ACCELERATOR"], rank["OMP_NUM_THREADS"]) == ("cpu", "1")


def test_one_rank_for_each_gpu_of_a_node(slurm, copy, output):
    # Only PATH goes from the caller to the job; what the script sets must reach the ranks anyway.
    options = ("--partition=gpu", "--nodes=1", f"--export=PATH={slurm.env['PATH']}")
    job = submit(slurm, copy, "reduce", output, options=options)
    state = slurm.wait(job)
    assert state["JobState"] == "COMPLETED", slurm.output(job)
    ranks = records(output)
    assert [rank["total"] for rank in ranks] == [3, 3]
    assert [rank["LOCAL_RANK"] for rank in ranks] == ["0", "1"]
    for rank in ranks:
        assert rank["LOCAL_WORLD_SIZE"] == "2"
        assert rank["CUDA_VISIBLE_DEVICES"] == "0,1"
        assert rank["DS_ACCELERATOR"] is None


def test_before_its_time_ends_a_job_saves_and_goes_back_to_the_queue(slurm, copy, output):
    job = submit(slurm, copy, "serve", output)
    up(output, 2)
    slurm.run("scancel", "--batch", "--signal=USR1", job)  # as --signal=B:USR1@… does
    slurm.start_now(job)
    state = slurm.wait(job)
    assert state["JobState"] == "COMPLETED", slurm.output(job)
    assert state["Restarts"] == "1"
    assert [path.read_text() for path in sorted(output.glob("asked-*"))] == ["SIGUSR1"] * 2
    assert len(list(output.glob("again-*"))) == 2
    # Both runs are in one file.
    assert "goes back to the queue" in slurm.output(job)


def test_a_requeued_job_saves_first(slurm, copy, output):
    job = submit(slurm, copy, "serve", output)
    up(output, 2)
    slurm.run("scontrol", "requeue", job)
    slurm.start_now(job)
    state = slurm.wait(job)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), slurm.output(job)
    assert [path.read_text() for path in sorted(output.glob("asked-*"))] == ["SIGTERM"] * 2


# With a time of grace Slurm asks the ranks alone and leaves it to the script to requeue the job.
@pytest.mark.parametrize("partition", ["main", "graceful"])
def test_a_preempted_job_saves_and_makes_room_and_runs_again(slurm, copy, output, partition):
    job = submit(slurm, copy, "serve", output, options=(f"--partition={partition}",))
    up(output, 2)
    urgent = slurm.submit("--partition=urgent", "--nodes=2", "--wrap=true", cwd=output)
    assert slurm.wait(urgent)["JobState"] == "COMPLETED"
    assert [path.read_text() for path in sorted(output.glob("asked-*"))] == ["SIGTERM"] * 2
    slurm.start_now(job)
    state = slurm.wait(job)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), slurm.output(job)


def test_a_cancelled_job_stays_cancelled(slurm, copy, output):
    job = submit(slurm, copy, "serve", output)
    up(output, 2)
    slurm.run("scancel", job)
    state = slurm.wait(job)
    assert (state["JobState"], state["Restarts"]) == ("CANCELLED", "0"), slurm.output(job)
    await_that("the ranks were asked", lambda: len(list(output.glob("asked-*"))) == 2)


@pytest.mark.parametrize("stage", ["init", "pt", "sft"])
def test_a_user_error_fails_and_is_not_tried_again(slurm, copy, output, stage):
    job = submit(slurm, copy, "refuse", output, stage=stage)
    state = slurm.wait(job)
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("FAILED", "2:0", "0")
    assert [rank["argv"][:2] for rank in records(output)] == [[stage, "refuse"]] * 2


def test_a_killed_rank_takes_the_job_down(slurm, copy, output):
    job = submit(slurm, copy, "die", output)
    state = slurm.wait(job)
    assert (state["JobState"], state["Restarts"]) == ("FAILED", "0"), slurm.output(job)
    assert state["ExitCode"] == f"{128 + signal.SIGKILL}:0"


def test_a_job_whose_node_goes_away_runs_again_on_another(slurm, copy, output):
    job = submit(slurm, copy, "serve", output)
    up(output, 2)
    with slurm.node_replaced("node2"):
        slurm.start_now(job)
        state = slurm.wait(job)
    assert (state["JobState"], state["Restarts"]) == ("COMPLETED", "1"), slurm.output(job)


@pytest.fixture
def taken():
    """Ray's default ports, listened on as another Ray would, whether or not one runs just now."""
    with ExitStack() as listeners:
        for port in filter(is_free, DEFAULT_PORTS.values()):
            listeners.enter_context(socket.create_server(("127.0.0.1", port)))
        yield


def test_etl_runs_its_job_on_a_ray_of_all_nodes_beside_another_ray(slurm, copy, output, taken):
    assert not any(is_free(port) for port in DEFAULT_PORTS.values())
    (copy / "etl").mkdir()
    (copy / "etl" / "count.py").write_text(COUNT)
    script = str(copy / "slurm" / "etl.sh")
    job = slurm.submit("--nodes=2", script, "count", "--output", "a folder", cwd=output)
    state = slurm.wait(job)
    assert state["JobState"] == "COMPLETED", slurm.output(job)
    assert json.loads((output / "count.json").read_text()) == ["--output", "a folder"]
    log = slurm.output(job)
    assert "Killed" not in log
    assert "Traceback" not in log
    assert not list(Path("/tmp").glob(f"mmloom-ray-{job}-*"))


def test_etl_that_fails_says_where_ray_s_logs_are(slurm, copy, output):
    (copy / "etl").mkdir()
    (copy / "etl" / "fail.py").write_text("raise SystemExit(3)")
    job = slurm.submit(str(copy / "slurm" / "etl.sh"), "fail", cwd=output)
    assert slurm.wait(job)["JobState"] == "FAILED"
    (line,) = [line for line in slurm.output(job).splitlines() if line.startswith("etl.sh: ")]
    folder = Path(line.rpartition(":")[2])
    assert list(folder.glob("ray/session_latest/logs/gcs_server.out"))
    shutil.rmtree(folder)


def test_etl_of_an_unknown_job_is_a_user_error(slurm, copy, output):
    job = slurm.submit(str(copy / "slurm" / "etl.sh"), "lion", cwd=output)
    assert slurm.wait(job)["ExitCode"] == "2:0"
    assert "lion.py" in slurm.output(job)


def test_the_repository_s_own_environment_is_preferred(slurm, copy, output):
    activate = copy / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text("export OMP_NUM_THREADS=7\n")
    slurm.wait(submit(slurm, copy, "refuse", output))
    assert [rank["OMP_NUM_THREADS"] for rank in records(output)] == ["7", "7"]
