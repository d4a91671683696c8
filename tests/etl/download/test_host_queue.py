"""Who is fetched next."""

import threading
import time

from etl.download.host_queue import HostQueue


def test_a_busy_host_does_not_keep_others_waiting() -> None:
    schedule: HostQueue[str] = HostQueue(per_host=2)
    for number in range(4):
        schedule.add("big", f"big {number}")
    schedule.add("small", "small")
    assert [schedule.take() for _ in range(3)] == ["big 0", "big 1", "small"]
    schedule.release("big")
    assert schedule.take() == "big 2"


def test_what_waits_lets_what_is_ready_pass() -> None:
    schedule: HostQueue[str] = HostQueue(per_host=8)
    schedule.add("host", "later", seconds=0.05)
    schedule.add("host", "now")
    assert schedule.take() == "now"
    assert schedule.take() == "later"  # waits for it


def test_a_host_on_hold_is_left_alone() -> None:
    schedule: HostQueue[str] = HostQueue(per_host=1)
    schedule.add("host", "first")
    schedule.add("host", "second")
    assert schedule.take() == "first"
    begun = time.monotonic()
    schedule.release("host", hold=0.05)
    assert schedule.take() == "second"
    assert time.monotonic() - begun >= 0.05


def test_closing_lets_everybody_go() -> None:
    schedule: HostQueue[str] = HostQueue(per_host=1)
    taken = []
    threads = [threading.Thread(target=lambda: taken.append(schedule.take())) for _ in range(3)]
    for thread in threads:
        thread.start()
    schedule.close()
    for thread in threads:
        thread.join(10)
    assert taken == [None, None, None]


def test_no_host_is_asked_more_often_than_allowed_and_nothing_is_lost() -> None:
    schedule: HostQueue[int] = HostQueue(per_host=3)
    lock = threading.Lock()
    running, most, done = dict.fromkeys("abc", 0), dict.fromkeys("abc", 0), []

    def work() -> None:
        while (task := schedule.take()) is not None:
            host = "abc"[task % 3]
            with lock:
                running[host] += 1
                most[host] = max(most[host], running[host])
            time.sleep(0)  # lets others in
            with lock:
                running[host] -= 1
                done.append(task)
            schedule.release(host)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for task in range(600):
        schedule.add("abc"[task % 3], task)
    while len(done) < 600:
        time.sleep(0.001)
    schedule.close()
    for thread in threads:
        thread.join(10)
    assert sorted(done) == list(range(600))
    assert max(most.values()) <= 3
