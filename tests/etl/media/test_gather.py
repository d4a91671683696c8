"""Joining records with their media: fetched once, joined, dropped."""

import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from etl.digits import motion, solids, tones
from etl.digits.records import pair
from etl.digits.scenes import encode, render
from etl.digits.subjects import sample
from etl.download.base import Fetched
from etl.media.gather import (
    CheckedMedium,
    GatheredRecord,
    MediaFetcher,
    MediaOptions,
    MediumKey,
    check_medium,
    gather,
)
from etl.media.image import ImageLimits
from etl.storage.schema import Medium, sha256

IMAGE_BYTES = encode(render(pair(0, 0).scene), "image/png")
IMAGE = ImageLimits(min_side=64, max_aspect=3, max_pixels=10**6)


class Web:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def stream(self, urls: Sequence[str], finish) -> Iterator:
        self.asked += urls
        for index, url in enumerate(urls):
            yield finish(index, Fetched(data=url.encode()))


def stream(options: MediaOptions, urls: Sequence[str], web: Web | None = None) -> list:
    fetcher = MediaFetcher(web or Web(), options, max_bytes=1000)
    return list(fetcher.stream(urls, lambda index, one: (index, one.data or one.reason)))


def test_media_are_read_from_the_web_local_files_and_data_urls(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"here")
    urls = ["http://web/1", "a.jpg", "data:image/png;base64,aW5saW5l", "b.jpg", "http://web/2"]
    web = Web()
    assert stream(MediaOptions(locations=(str(tmp_path),)), urls, web) == [
        (0, b"http://web/1"),
        (1, b"here"),
        (2, b"inline"),
        (3, "not_in_media"),
        (4, b"http://web/2"),
    ]
    assert web.asked == ["http://web/1", "http://web/2"]


def test_names_may_be_prefixed_with_an_address() -> None:
    options = MediaOptions(locations=("http://web/train2017/",))
    assert stream(options, ["0 1.jpg", "http://other/1"]) == [
        (0, b"http://web/train2017/0%201.jpg"),
        (1, b"http://other/1"),
    ]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("a.jpg", "no_media"),
        ("data:image/png;base64,???", "bad_url"),
        ("data:image/png;base64," + "A" * 4000, "body_too_large"),
        ("data:image/png;base64," + base64.b64encode(b"x" * 1001).decode(), "body_too_large"),
    ],
)
def test_unavailable_media_have_a_reason(url: str, reason: str) -> None:
    assert stream(MediaOptions(), [url]) == [(0, reason)]


def test_data_urls_may_be_percent_encoded() -> None:
    assert stream(MediaOptions(), ["data:text/plain,a%20b"]) == [(0, b"a b")]


@pytest.mark.parametrize("name", ["video", "audio", "points"])
def test_valid_media_of_all_kinds_are_stored_unchanged(name: str) -> None:
    for number in range(3):
        (medium,) = sample(name, "captions", 0, number).media
        key = (medium.kind, "http://web/1", None, None)
        found = check_medium(key, Fetched(data=medium.data), MediaOptions(), IMAGE)
        assert found.medium == medium


def test_images_have_a_perceptual_hash() -> None:
    found = check_medium(
        ("image", "u", None, None), Fetched(data=IMAGE_BYTES), MediaOptions(), IMAGE
    )
    assert (found.medium.width, found.medium.mime) == (96, "image/png")
    assert found.phash is not None


def test_re_encoded_media_have_a_new_sha256() -> None:
    data = tones.encode(
        tones.render(tones.Dialling(digits=(1, 2, 3), phone=200, seed=1)), "audio/wav"
    )
    found = check_medium(("audio", "u", 0.1, 0.2), Fetched(data=data), MediaOptions(), IMAGE)
    assert found.medium.mime == "audio/flac"
    assert found.medium.sha256 == sha256(found.medium.data) != sha256(data)
    assert found.medium.duration == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (
            "video",
            tones.encode(tones.render(tones.Dialling(digits=(1,), phone=0, seed=0)), "audio/wav"),
        ),
        (
            "audio",
            solids.encode(solids.render(solids.Solid(digit=1, colour="red", scan=1, seed=0))),
        ),
        ("points", IMAGE_BYTES),
        (
            "image",
            motion.encode(
                motion.render(
                    motion.Motion(
                        digit=1, colour="red", direction="north", scan=1, frames=8, seed=0
                    )
                )
            ),
        ),
    ],
)
def test_media_of_another_kind_have_the_wrong_type(kind: str, data: bytes) -> None:
    found = check_medium((kind, "u", None, None), Fetched(data=data), MediaOptions(), IMAGE)
    assert (found.medium, found.step, found.reason) == (None, "decode", "wrong_type")


# Joining.

LOST = {
    "gone": CheckedMedium(step="download", reason="http_404", detail="Not Found"),
    "page": CheckedMedium(step="decode", reason="wrong_type"),
}


class Media:
    """Fake media by name; records the requests and how many were returned."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.returned = 0

    def stream(self, keys: Sequence[MediumKey]) -> Iterator[CheckedMedium]:
        self.asked += [url for _, url, _, _ in keys]
        for kind, url, _, _ in keys:
            self.returned += 1
            medium = Medium(kind=kind, data=url.encode(), mime="", sha256="")
            yield LOST.get(url) or CheckedMedium(medium=medium)


def row(text: str, *urls: str) -> dict:
    media = [{"kind": "image", "url": url, "start": None, "length": None} for url in urls]
    return {"turns": [{"role": "assistant", "text": text}], "media": media, "lineage": "{}"}


def test_shared_media_are_fetched_once() -> None:
    media = Media()
    rows = [row("<image>", "a"), row("<image><image>", "b", "a"), row("text"), row("<image>", "b")]
    found = list(gather(rows, media.stream, "drop"))
    assert media.asked == ["a", "b"]
    assert [[one.medium.data for one in record.media] for record in found] == [
        [b"a"],
        [b"b", b"a"],
        [],
        [b"b"],
    ]


def test_a_record_is_yielded_as_soon_as_its_media_arrived() -> None:
    media = Media()
    found = gather([row("<image>", name) for name in "abc"], media.stream, "drop")
    next(found)
    assert media.returned == 1


def test_a_record_is_dropped_for_its_earliest_failed_step() -> None:
    rows = [row("<image><image><image>", "a", "page", "gone"), row("<image>", "page")]
    first, second = gather(rows, Media().stream, "drop")
    assert (first.step, first.reason, first.detail) == ("download", "http_404", "Not Found")
    assert (second.step, second.reason) == ("decode", "wrong_type")


def test_failed_images_are_removed_and_listed_in_lineage() -> None:
    text = "<image>\nOne. <image> Two.\n<image>\nThree."
    (kept,) = gather([row(text, "gone", "a", "page")], Media().stream, "remove")
    assert isinstance(kept, GatheredRecord)
    assert kept.row["turns"] == [{"role": "assistant", "text": "One. <image> Two.\nThree."}]
    assert [one.medium.data for one in kept.media] == [b"a"]
    lost = json.loads(json.loads(kept.row["lineage"])["lost_media"])
    assert lost == ["gone http_404", "page wrong_type"]


def test_a_document_is_dropped_if_all_its_images_failed() -> None:
    (lost,) = gather([row("<image><image>", "page", "gone")], Media().stream, "remove")
    assert lost.reason == "http_404"
    (kept,) = gather([row("text")], Media().stream, "remove")
    assert kept.media == ()
