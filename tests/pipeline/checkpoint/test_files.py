"""Checkpoints are published atomically; old ones are pruned, milestones are kept."""

from pathlib import Path

from pipeline.checkpoint.files import CheckpointFolder, checksums, find_damage, read_manifest


def publish(
    folder: CheckpointFolder,
    step: int,
    *,
    text: str = "w",
    loss: float | None = None,
    data: str = "d",
) -> Path:
    partial = folder.partial(step)
    partial.mkdir(parents=True)
    (partial / "weights").write_text(text)
    files = checksums(partial, [partial / "weights"])
    content = {"trainer_state": {"step": step}, "validation": {"loss": loss, "data": data}}
    folder.publish(partial, content, files)
    return folder.final(step)


def names(folder: CheckpointFolder) -> list[int]:
    return [int(path.name[5:]) for path in reversed(folder.complete())]


def test_a_published_checkpoint_is_complete_and_the_latest(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    final = publish(folder, 3)
    assert folder.latest() == final.name == "step-00000003"
    assert find_damage(final) is None
    assert read_manifest(final)["files"]["weights"]["bytes"] == 1
    assert not folder.partial(3).exists()
    publish(folder, 3, text="again")  # after the run resumed from an older step
    assert (final / "weights").read_text() == "again"


def test_the_newest_and_the_milestones_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step in range(10, 100, 10):
        publish(folder, step)
        folder.prune(2, 40)
    assert names(folder) == [40, 80, 90]  # the newest two, one of them a milestone, and another
    folder.prune(1, None)
    assert names(folder) == [90]


def test_the_best_is_kept_too(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    assert folder.best(None) is None
    for step, loss in enumerate([3.0, 1.0, 2.0, None, 1.0, 4.0], start=1):
        publish(folder, step, loss=loss)
        folder.prune(1, None)
    assert names(folder) == [2, 6]
    assert (tmp_path / "best").read_text() == "step-00000002\n"  # of equal ones the first
    folder.point_latest("step-00000002")
    publish(folder, 3, loss=0.5)  # 6 belongs to an abandoned future
    assert (tmp_path / "best").read_text() == "step-00000003\n"


def test_losses_on_other_validation_data_do_not_compare(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    publish(folder, 1, loss=1.0)
    publish(folder, 2, loss=5.0, data="other")
    assert (tmp_path / "best").read_text() == "step-00000002\n"


def test_checkpoints_newer_than_latest_are_kept_until_they_are_overwritten(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step in (1, 2, 3):
        publish(folder, step)
    folder.point_latest("step-00000001")
    folder.prune(1, None)
    assert names(folder) == [1, 2, 3]
    assert folder.newest_valid() == folder.final(1)


def test_leftovers_of_killed_writers_are_not_checkpoints_and_are_removed(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    publish(folder, 1)
    (folder.partial(2) / "zero").mkdir(parents=True)
    assert names(folder) == [1]
    folder.remove_leftovers()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]
