"""Pausing and resuming a busy sandbox again and again: not one byte is lost."""

import json
import os
import random
import time
import urllib.request

import pytest
from e2b import Sandbox

from harness.atoll import DRIVER, wait_until

pytestmark = pytest.mark.skipif(DRIVER == "container", reason="containers keep no memory on disk")

CYCLES = int(os.environ.get("ATOLL_CYCLES", "8"))
PORT = 8000
INSIDE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "inside")


class Ledger:
    """The program in the sandbox that knows all that it wrote."""

    def __init__(self, atoll, box):
        self.request = urllib.request.Request(
            atoll.url, headers={"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": str(PORT)}
        )
        with open(os.path.join(INSIDE, "ledger.py")) as source:
            box.files.write("/home/user/ledger.py", source.read())
        box.commands.run(f"python3 ledger.py {PORT}", background=True, timeout=0)
        wait_until(lambda: self.ask(OSError), 60, "the ledger is kept")

    def ask(self, ignored=()):
        try:
            with urllib.request.urlopen(self.request, timeout=60) as answer:
                return json.loads(answer.read())
        except ignored:
            return None


@pytest.mark.timeout(max(300, CYCLES * 10))
def test_cycles_lose_nothing(atoll):
    seed = int(os.environ.get("ATOLL_CYCLES_SEED", str(random.randrange(1 << 32))))
    print("seed", seed)
    draw = random.Random(seed)
    box = Sandbox.create(timeout=3600)
    ledger = Ledger(atoll, box)
    first = last = ledger.ask()
    assert first["wrong"] == [] and len(set(first["still"])) == 1, first
    pausing = resuming = 0.0
    for cycle in range(CYCLES):
        # Not a wait for anything: the pause comes at any moment of the load.
        time.sleep(draw.uniform(0.0, 0.3))
        began = time.monotonic()
        assert box.pause() is True
        paused = time.monotonic()
        box = Sandbox.connect(box.sandbox_id, timeout=3600)
        resuming += time.monotonic() - paused
        pausing += paused - began
        now = ledger.ask()
        assert now["wrong"] == [], f"cycle {cycle}"
        assert now["still"] == first["still"], f"cycle {cycle}"
        assert (now["boot"], now["pid"]) == (first["boot"], first["pid"]), f"cycle {cycle}"
        for what, count in now["counts"].items():
            assert count >= last["counts"][what], f"cycle {cycle}: {what} went back"
        last = now
        if (cycle + 1) % 100 == 0:
            print(f"{cycle + 1} cycles, {last['counts']}", flush=True)
    for what, count in last["counts"].items():
        assert count > first["counts"][what], f"{what} stood still all the time"
    print(
        f"{CYCLES} cycles: pause {pausing / CYCLES * 1000:.0f} ms, resume {resuming / CYCLES * 1000:.0f} ms on average;"
        f" {last['counts']}"
    )
    box.kill()
