import pyarrow as pa
import pytest

from etl.filters.urls import check_urls, is_public


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/a.jpg", None),
        ("HTTPS://example.com:8443/a?b#c", None),
        ("http://8.8.8.8/a", None),
        (None, "no_url"),
        ("", "no_url"),
        ("ftp://example.com/a", "bad_url"),
        ("file:///etc/passwd", "bad_url"),
        ("example.com/a.jpg", "bad_url"),
        ("http:///a.jpg", "bad_url"),
        ("http://example.com:port/", "bad_url"),
        ("http://[::1/", "bad_url"),
        ("http://example.com/a b", None),
        (" http://example.com/a?b c ", None),
        ("http://exam ple.com/a", "bad_url"),
        ("http://localhost/a", "private_address"),
        ("http://127.0.0.1:80/a", "private_address"),
        ("http://10.1.2.3/a", "private_address"),
        ("http://169.254.169.254/latest/meta-data", "private_address"),
        ("http://[::1]/a", "private_address"),
        ("http://[::ffff:192.168.0.1]/a", "private_address"),
    ],
)
def test_urls(url: str | None, reason: str | None) -> None:
    table = pa.table({"url": pa.array([url], pa.string())})
    assert check_urls(table, allow_private=False).reasons == [reason]
    allowed = None if reason == "private_address" else reason
    assert check_urls(table, allow_private=True).reasons == [allowed]


def test_public_addresses() -> None:
    assert is_public("1.1.1.1")
    assert is_public("2606:4700:4700::1111")
    for private in ("0.0.0.0", "100.64.0.1", "224.0.0.1", "fe80::1%eth0", "fc00::1"):
        assert not is_public(private)
