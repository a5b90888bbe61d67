"""`kill -9` at random moments under load: nothing leaks and no running sandbox is lost."""

import concurrent.futures
import os
import random
import signal
import threading
import time

import pytest
from e2b import Sandbox

from harness.atoll import Atoll, copy_of_golden, wait_until
from harness.leaks import instance_name

ROUNDS = int(os.environ.get("ATOLL_CRASH_ROUNDS", "100"))


class Load:
    """Creates, uses and kills sandboxes from several threads, and remembers what it was told."""

    def __init__(self):
        self.lock = threading.Lock()
        self.running = {}
        self.stop = threading.Event()
        self.url = None

    def options(self, atoll):
        return atoll.sdk_options()

    def work(self, atoll, seed):
        draw = random.Random(seed)
        options = {**self.options(atoll), "retries": 0, "request_timeout": 20}
        while not self.stop.is_set():
            try:
                kind = draw.random()
                if kind < 0.6 or not self.running:
                    box = Sandbox.create(timeout=3600, **options)
                    with self.lock:
                        self.running[box.sandbox_id] = box
                    box.commands.run("echo here > /home/user/mark", request_timeout=20)
                else:
                    with self.lock:
                        if not self.running:
                            continue
                        name = draw.choice(list(self.running))
                        box = self.running.pop(name)
                    Sandbox.kill(name, **options)
            except Exception:
                if not self.stop.is_set():
                    self.stop.wait(0.005)


@pytest.mark.timeout(1800)
def test_kill_at_random_moments():
    """After each of the kills: every sandbox that was handed out answers or has a reason."""
    seed = int(os.environ.get("ATOLL_CRASH_SEED", str(random.randrange(1 << 32))))
    print("seed", seed)
    draw = random.Random(seed)
    atoll = Atoll(copy_of_golden("crash"), "--max-sandboxes", "64").start()
    load = Load()
    try:
        for round_number in range(ROUNDS):
            load.stop.clear()
            threads = [
                threading.Thread(target=load.work, args=(atoll, draw.randrange(1 << 32))) for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            time.sleep(draw.uniform(0.0, 0.4))
            atoll.kill()
            load.stop.set()
            for thread in threads:
                thread.join(60)
            atoll.start()
            with load.lock:
                handed_out = dict(load.running)
            for name, box in handed_out.items():
                status, body, _ = atoll.request("GET", f"/v1/sandboxes/{name}")
                assert status == 200, f"round {round_number}: {name} is unknown: {status} {body}"
                if body["state"]["state"] == "ended":
                    assert body["state"]["reason"]["kind"], body
                    load.running.pop(name)
                    pytest.fail(f"round {round_number}: running {name} was lost: {body['state']}")
                again = Sandbox.connect(name, **load.options(atoll))
                assert again.commands.run("echo alive").stdout == "alive\n"
            while len(load.running) > 12:
                name, box = load.running.popitem()
                Sandbox.kill(name, **load.options(atoll))
            # Created, but the answer never reached the client: listed, so that its owner can end it.
            # They are ended here, or soon there would be no room left for the load.
            status, body, _ = atoll.request("GET", "/v1/sandboxes?state=running")
            assert status == 200, body
            for name in {entry["id"] for entry in body} - set(load.running):
                Sandbox.kill(name, **load.options(atoll))
    finally:
        if atoll.process is None:
            atoll.start()
        assert atoll.stop() == 0
    assert atoll.leaks() == []


def test_keep_leaves_sandboxes_for_the_next_start(own_atoll):
    atoll = own_atoll("--on-exit", "keep")
    options = atoll.sdk_options()
    box = Sandbox.create(timeout=600, **options)
    box.commands.run("echo kept > note; sleep 1000", background=True)
    assert atoll.stop() == 0
    atoll.start()
    again = Sandbox.connect(box.sandbox_id, **atoll.sdk_options())
    assert again.files.read("note") == "kept\n"
    assert any("sleep 1000" in " ".join(p.args) for p in again.commands.list())
    atoll.arguments = ["--on-exit", "kill"]
    atoll.kill()
    atoll.start()
    assert again.sandbox_id in {i.sandbox_id for i in Sandbox.list(**atoll.sdk_options()).next_items()}
    assert atoll.stop() == 0
    assert atoll.leaks() == []


def test_time_that_ran_out_while_down(own_atoll):
    atoll = own_atoll()
    box = Sandbox.create(timeout=2, **atoll.sdk_options())
    atoll.kill()
    time.sleep(2.2)
    atoll.start()
    status, body, _ = atoll.request("GET", f"/v1/sandboxes/{box.sandbox_id}")
    assert status == 200

    def ended():
        return atoll.request("GET", f"/v1/sandboxes/{box.sandbox_id}")[1]["state"]["state"] == "ended"

    wait_until(ended, 5, "it ends")
    _, body, _ = atoll.request("GET", f"/v1/sandboxes/{box.sandbox_id}")
    assert body["state"]["reason"]["kind"] == "timed_out"


def test_a_first_process_that_dies_is_a_crash_with_a_reason(own_atoll):
    atoll = own_atoll()
    box = Sandbox.create(timeout=600, **atoll.sdk_options())
    victims = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            status = open(f"/proc/{pid}/status").read()
            group = open(f"/proc/{pid}/cgroup").read()
        except OSError:
            continue
        levels = [line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")]
        # Of this instance: others may run on the same machine.
        if f"atoll-{instance_name(atoll.data_dir)}" in group and levels and levels[0][-1] == "1":
            victims.append(int(pid))
    for pid in victims:
        os.kill(pid, signal.SIGKILL)

    def ended():
        return atoll.request("GET", f"/v1/sandboxes/{box.sandbox_id}")[1]["state"]["state"] == "ended"

    wait_until(ended, 10, "the crash is noticed")
    _, body, _ = atoll.request("GET", f"/v1/sandboxes/{box.sandbox_id}")
    assert body["state"]["reason"]["kind"] == "crashed"
    assert Sandbox.create(timeout=60, **atoll.sdk_options()).kill(), "the pool has recovered"


def test_many_at_once_then_nothing(own_atoll):
    atoll = own_atoll()
    options = atoll.sdk_options()
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        boxes = list(pool.map(lambda _: Sandbox.create(timeout=600, **options), range(100)))
        assert len({box.sandbox_id for box in boxes}) == 100
        assert set(pool.map(lambda box: box.commands.run("echo up").stdout, boxes)) == {"up\n"}
        assert all(pool.map(lambda box: box.kill(), boxes))
    assert atoll.stop() == 0
    assert atoll.leaks() == []


def test_capacity_is_refused_clearly(own_atoll):
    atoll = own_atoll("--max-sandboxes", "2")
    options = {**atoll.sdk_options(), "retries": 0}
    boxes = [Sandbox.create(timeout=600, **options) for _ in range(2)]
    status, body, _ = atoll.request("POST", "/v2/sandboxes", {"templateID": "base"})
    assert status == 503 and body["remedy"], body
    boxes[0].kill()
    wait_until(
        lambda: atoll.request("POST", "/v2/sandboxes", {"templateID": "base"})[0] == 201, 10, "room again"
    )
