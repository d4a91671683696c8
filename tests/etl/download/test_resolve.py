"""DNS answers: cached, checked, and cut off when DNS itself fails."""

import socket

import pytest

from etl.download.errors import FetchError
from etl.download.resolve import Resolver


class Dns:
    """Stands for the system's resolver: knows names, and whether it works at all."""

    def __init__(self, **names: str) -> None:
        self.names = names
        self.asked: list[str] = []
        self.works = True

    def __call__(self, host: str) -> list[str]:
        self.asked.append(host)
        if not self.works:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.names[host].split()


def reason(resolver: Resolver, host: str) -> str:
    with pytest.raises(FetchError) as caught:
        resolver.addresses(host)
    return caught.value.reason


def test_names_are_asked_for_once() -> None:
    dns = Dns(known="93.184.216.34")
    resolver = Resolver(allow_private=False, lookup=dns)
    assert [resolver.addresses("known") for _ in range(3)] == [["93.184.216.34"]] * 3
    assert [reason(resolver, "unknown") for _ in range(3)] == ["dns_failure"] * 3
    assert dns.asked == ["known", "unknown"]


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fd00::1", "::ffff:10.0.0.1"]
)
def test_one_private_address_refuses_a_name(address: str) -> None:
    dns = Dns(mixed=f"93.184.216.34 {address}")
    assert reason(Resolver(allow_private=False, lookup=dns), "mixed") == "private_address"
    assert address in Resolver(allow_private=True, lookup=dns).addresses("mixed")


def test_when_dns_fails_it_is_left_alone() -> None:
    dns = Dns()
    dns.works = False
    resolver = Resolver(allow_private=False, lookup=dns)
    assert {reason(resolver, f"host{number}") for number in range(200)} == {"dns_temporary"}
    assert len(dns.asked) < 60


def test_dead_names_among_living_ones_are_no_failure_of_dns() -> None:
    dns = Dns(**{f"alive{number}": "93.184.216.34" for number in range(200)})
    resolver = Resolver(allow_private=False, lookup=dns)
    for number in range(200):
        assert reason(resolver, f"dead{number}") == "dns_failure"
        assert resolver.addresses(f"alive{number}")
    assert len(dns.asked) == 400
