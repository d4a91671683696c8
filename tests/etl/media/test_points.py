import io
import struct
from pathlib import Path

import numpy as np
import pytest

from etl.digits import solids
from etl.media.points import PointsLimits, probe

CLOUD = solids.render(solids.random_solid(np.random.default_rng(0), "train"))
NPY = solids.encode(CLOUD)
LIMITS = PointsLimits()


def ply(cloud: np.ndarray, order: str) -> bytes:
    head = f"ply\nformat {order} 1.0\ncomment generated\nelement vertex {len(cloud)}\n"
    head += "property float x\nproperty float y\nproperty float z\nproperty uchar red\n"
    head += "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    if order == "ascii":
        rows = "".join(f"{x} {y} {z} 7\n" for x, y, z in cloud[:, :3])
        return (head + rows + "3 0 1 2\n").encode()
    sign = "<" if "little" in order else ">"
    body = b"".join(struct.pack(f"{sign}fffB", *point, 7) for point in cloud[:, :3])
    return head.encode() + body + struct.pack(f"{sign}Biii", 3, 0, 1, 2)


def off(cloud: np.ndarray, head: str = "OFF\n") -> bytes:
    rows = "".join(f"{x} {y} {z}\n" for x, y, z in cloud[:, :3])
    return f"{head}{len(cloud)} 1 0\n# a comment\n{rows}3 0 1 2\n".encode()


def obj(cloud: np.ndarray) -> bytes:
    rows = "".join(f"v {x} {y} {z}\n" for x, y, z in cloud[:, :3])
    return f"# generated\n{rows}vn 0 0 1\nf 1 2 3\n".encode()


@pytest.mark.parametrize(
    ("data", "mime"),
    [
        (NPY, "application/x-npy"),
        (ply(CLOUD, "ascii"), "model/ply"),
        (ply(CLOUD, "binary_little_endian"), "model/ply"),
        (ply(CLOUD, "binary_big_endian"), "model/ply"),
        (off(CLOUD), "model/off"),
        (off(CLOUD, "OFF"), "model/off"),
        (obj(CLOUD), "model/obj"),
    ],
)
def test_clouds_are_counted(data: bytes, mime: str) -> None:
    info = probe(data, LIMITS)
    assert (info.mime, info.points) == (mime, len(CLOUD))


def array(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


WRONG_SHAPE = NPY.replace(b"(1024, 6)", b"(9024, 6)")
HUGE = b"ply\nformat ascii 1.0\nelement vertex 1000000000\nproperty float x\nend_header\n0\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_body"),
        (b"<html>no cloud</html>", "wrong_type"),
        (NPY[: len(NPY) // 2], "truncated"),
        (WRONG_SHAPE, "truncated"),
        (b"\x93NUMPY\x01\x00\x04\x00{{{{", "corrupt"),
        (array(np.zeros((100, 2))), "wrong_shape"),
        (array(np.array([["a"] * 3] * 100)), "wrong_shape"),
        (array(np.zeros((100, 3))), "all_points_equal"),
        (array(np.full((100, 3), np.nan)), "non_finite"),
        (array(CLOUD[:10]), "too_few_points"),
        (ply(CLOUD, "ascii")[:2000], "truncated"),
        (ply(CLOUD, "binary_little_endian")[:2000], "truncated"),
        (ply(CLOUD, "ascii")[:60], "truncated"),
        (HUGE, "wrong_shape"),
        (off(CLOUD)[:2000], "truncated"),
        (b"OFF\nmany vertices\n", "corrupt"),
        (b"v 1 2 three\n" * 100, "corrupt"),
    ],
)
def test_invalid_clouds_are_dropped_with_a_reason(data: bytes, reason: str) -> None:
    assert probe(data, LIMITS) == reason


def test_pickles_are_not_opened() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([[{}] * 3] * 100, dtype=object), allow_pickle=True)
    assert probe(stream.getvalue(), LIMITS) == "wrong_shape"


def test_limits() -> None:
    assert probe(NPY, PointsLimits(max_points=100)) == "too_many_points"


def test_published_meshes() -> None:
    folder = Path(__file__).parents[4] / "shared" / "data" / "pointcloud" / "trimesh"
    files = [file for file in sorted(folder.glob("*")) if file.suffix in (".ply", ".off", ".obj")]
    if not files:
        pytest.skip(f"no meshes in {folder}")
    for file in files:
        found = probe(file.read_bytes(), PointsLimits(min_points=1))
        assert not isinstance(found, str), (file.name, found)
