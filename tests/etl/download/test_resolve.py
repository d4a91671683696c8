"""DNS results: cached, checked, and suspended while DNS is failing."""

import socket

import pytest

from etl.download.errors import FetchError
from etl.download.resolve import Resolver


class Dns:
    """A fake of the system's resolver, which can be switched off."""

    def __init__(self, **names: str) -> None:
        self.names = names
        self.lookups: list[str] = []
        self.works = True

    def __call__(self, host: str) -> list[str]:
        self.lookups.append(host)
        if not self.works:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.names[host].split()


def reason(resolver: Resolver, host: str) -> str:
    with pytest.raises(FetchError) as caught:
        resolver.addresses(host)
    return caught.value.reason


def test_names_are_resolved_once() -> None:
    dns = Dns(known="93.184.216.34")
    resolver = Resolver(allow_private=False, lookup=dns)
    assert [resolver.addresses("known") for _ in range(3)] == [["93.184.216.34"]] * 3
    assert [reason(resolver, "unknown") for _ in range(3)] == ["dns_failure"] * 3
    assert dns.lookups == ["known", "unknown"]


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fd00::1", "::ffff:10.0.0.1"]
)
def test_one_private_address_refuses_a_name(address: str) -> None:
    dns = Dns(mixed=f"93.184.216.34 {address}")
    assert reason(Resolver(allow_private=False, lookup=dns), "mixed") == "private_address"
    assert address in Resolver(allow_private=True, lookup=dns).addresses("mixed")


def test_lookups_are_suspended_while_dns_is_failing() -> None:
    dns = Dns()
    dns.works = False
    resolver = Resolver(allow_private=False, lookup=dns)
    assert {reason(resolver, f"host{number}") for number in range(200)} == {"dns_temporary"}
    assert len(dns.lookups) < 60


def test_dead_names_among_valid_ones_are_not_an_outage() -> None:
    dns = Dns(**{f"alive{number}": "93.184.216.34" for number in range(200)})
    resolver = Resolver(allow_private=False, lookup=dns)
    for number in range(200):
        assert reason(resolver, f"dead{number}") == "dns_failure"
        assert resolver.addresses(f"alive{number}")
    assert len(dns.lookups) == 400
