"""Checkpoints appear whole, old ones go, and milestones stay."""

from pathlib import Path

from pipeline.checkpoint.files import CheckpointFolder, damage, describe, read_manifest


def publish(folder: CheckpointFolder, step: int, *, text: str = "w") -> Path:
    partial = folder.partial(step)
    partial.mkdir(parents=True)
    (partial / "weights").write_text(text)
    folder.publish(partial, {"cursor": {"step": step}}, describe(partial, [partial / "weights"]))
    return folder.final(step)


def names(folder: CheckpointFolder) -> list[int]:
    return [int(path.name[5:]) for path in reversed(folder.steps())]


def test_one_appears_whole_and_is_the_latest(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    final = publish(folder, 3)
    assert folder.latest() == final.name == "step-00000003"
    assert damage(final) is None
    assert read_manifest(final)["files"]["weights"]["bytes"] == 1
    assert not folder.partial(3).exists()
    publish(folder, 3, text="again")  # after going on from an older step
    assert (final / "weights").read_text() == "again"


def test_the_newest_and_the_milestones_stay(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step in range(10, 100, 10):
        publish(folder, step)
        folder.prune(2, 40)
    assert names(folder) == [
        40,
        80,
        90,
    ]  # the newest two, of which one is a milestone, and the other
    folder.prune(1, None)
    assert names(folder) == [90]


def test_newer_ones_than_the_latest_stay_until_they_are_written_again(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step in (1, 2, 3):
        publish(folder, step)
    folder.point_latest("step-00000001")
    folder.prune(1, None)
    assert names(folder) == [1, 2, 3]
    assert folder.newest_sound() == folder.final(1)


def test_what_killed_writers_left_is_no_checkpoint_and_goes(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    publish(folder, 1)
    (folder.partial(2) / "zero").mkdir(parents=True)
    assert names(folder) == [1]
    folder.remove_leftovers()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]
