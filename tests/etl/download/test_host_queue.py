"""Which task the queue returns next."""

import threading
import time

from etl.download.host_queue import HostQueue


def test_a_busy_host_does_not_block_others() -> None:
    queue: HostQueue[str] = HostQueue(per_host=2)
    for number in range(4):
        queue.add("big", f"big {number}")
    queue.add("small", "small")
    assert [queue.take() for _ in range(3)] == ["big 0", "big 1", "small"]
    queue.release("big")
    assert queue.take() == "big 2"


def test_delayed_tasks_do_not_block_ready_ones() -> None:
    queue: HostQueue[str] = HostQueue(per_host=8)
    queue.add("host", "later", seconds=0.05)
    queue.add("host", "now")
    assert queue.take() == "now"
    assert queue.take() == "later"  # waits until it is due


def test_a_host_on_hold_is_not_served() -> None:
    queue: HostQueue[str] = HostQueue(per_host=1)
    queue.add("host", "first")
    queue.add("host", "second")
    assert queue.take() == "first"
    started = time.monotonic()
    queue.release("host", hold=0.05)
    assert queue.take() == "second"
    assert time.monotonic() - started >= 0.05


def test_closing_wakes_all_threads() -> None:
    queue: HostQueue[str] = HostQueue(per_host=1)
    taken = []
    threads = [threading.Thread(target=lambda: taken.append(queue.take())) for _ in range(3)]
    for thread in threads:
        thread.start()
    queue.close()
    for thread in threads:
        thread.join(10)
    assert taken == [None, None, None]


def test_the_limit_per_host_holds_and_no_task_is_lost() -> None:
    queue: HostQueue[int] = HostQueue(per_host=3)
    lock = threading.Lock()
    running, most, done = dict.fromkeys("abc", 0), dict.fromkeys("abc", 0), []

    def work() -> None:
        while (task := queue.take()) is not None:
            host = "abc"[task % 3]
            with lock:
                running[host] += 1
                most[host] = max(most[host], running[host])
            time.sleep(0)  # lets other threads run
            with lock:
                running[host] -= 1
                done.append(task)
            queue.release(host)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for task in range(600):
        queue.add("abc"[task % 3], task)
    while len(done) < 600:
        time.sleep(0.001)
    queue.close()
    for thread in threads:
        thread.join(10)
    assert sorted(done) == list(range(600))
    assert max(most.values()) <= 3
