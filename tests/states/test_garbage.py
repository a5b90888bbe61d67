"""Whatever is made and deleted, the data directory is back to its size."""

import json
import os
import random
import shutil
import tempfile

import pytest
from e2b import Sandbox

import small_root
from harness.atoll import DRIVER

pytestmark = pytest.mark.skipif(DRIVER == "container", reason="containers keep no memory on disk")

OBJECTS = int(os.environ.get("ATOLL_OBJECTS", "12"))


def sizes_of(top):
    """What is allocated on the disk, in bytes, by file; a file of several names counts once."""
    sizes, seen = {}, set()
    for folder, _, names in os.walk(top):
        for path in [folder, *(os.path.join(folder, name) for name in names)]:
            status = os.lstat(path)
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                sizes[os.path.relpath(path, top)] = status.st_blocks * 512
    return sizes


class Made:
    """Makes templates, snapshots and forks, and deletes them."""

    def __init__(self, atoll, draw, scratch):
        self.atoll, self.draw, self.scratch = atoll, draw, scratch
        self.options = atoll.sdk_options()
        self.things = []
        self.count = {"template": 0, "snapshot": 0, "fork": 0}

    def make(self, kind):
        number = sum(self.count.values())
        self.count[kind] += 1
        if kind == "template":
            name = f"made-{number}"
            source = small_root.make(os.path.join(self.scratch, name), f"mark of {name}")
            body = {"name": name, "source": source, "memoryMB": 128}
            status, answer, _ = self.atoll.request("POST", "/v1/templates", body)
            last = json.loads(answer.strip().splitlines()[-1]) if isinstance(answer, str) else answer
            assert status == 200 and "template" in last, answer
            box = Sandbox.create(name, timeout=600, **self.options)
            assert box.commands.run("cat /mark").stdout == f"mark of {name}"
            box.kill()
            self.things.append((kind, name))
        elif kind == "snapshot":
            with self.start() as box:
                box.commands.run(f"head -c 3000000 /dev/urandom > /home/user/{number}")
                self.things.append((kind, box.create_snapshot().snapshot_id))
        else:
            with self.start() as box:
                box.commands.run(f"head -c 3000000 /dev/urandom > /home/user/{number}")
                for child in box.fork(count=2, timeout=600):
                    assert not isinstance(child, Exception), child
                    self.things.append((kind, child.sandbox_id))

    def start(self):
        """A sandbox of base, or of a snapshot: snapshots stand on snapshots."""
        snapshots = [name for kind, name in self.things if kind == "snapshot"]
        source = self.draw.choice(["base", *snapshots])
        return Sandbox.create(source, timeout=600, **self.options)

    def delete(self):
        kind, name = self.things.pop(self.draw.randrange(len(self.things)))
        if kind == "template":
            status, body, _ = self.atoll.request("DELETE", f"/templates/{name}")
            assert status in (200, 204), body
        elif kind == "snapshot":
            assert Sandbox.delete_snapshot(name, **self.options) is True
        else:
            if self.draw.random() < 0.5:
                Sandbox.pause(name, **self.options)
            assert Sandbox.kill(name, **self.options) is True


@pytest.mark.timeout(max(300, OBJECTS * 30))
def test_what_is_deleted_gives_its_place_back(own_atoll):
    seed = int(os.environ.get("ATOLL_OBJECTS_SEED", str(random.randrange(1 << 32))))
    print("seed", seed)
    draw = random.Random(seed)
    atoll = own_atoll()
    assert atoll.stop() == 0
    sizes_before = sizes_of(atoll.data_dir)
    atoll.start()
    scratch = tempfile.mkdtemp(prefix="atoll-garbage-")
    try:
        made = Made(atoll, draw, scratch)
        for number in range(OBJECTS):
            # Some of each, in any order.
            kinds = ["template", "snapshot", "fork"]
            made.make(kinds[number] if number < 3 else draw.choice(kinds))
            while len(made.things) > 5 or (made.things and draw.random() < 0.4):
                made.delete()
        while made.things:
            made.delete()
        status, garbage, _ = atoll.request("POST", "/v1/gc")
        assert status == 200, garbage
    finally:
        shutil.rmtree(scratch)
    assert atoll.stop() == 0
    sizes_after = sizes_of(atoll.data_dir)
    before, after = sum(sizes_before.values()), sum(sizes_after.values())
    print(made.count, f"{before} bytes before, {after} after: {100 * (after - before) / before:+.2f} %")
    for name in sorted({*sizes_before, *sizes_after}):
        if sizes_before.get(name) != sizes_after.get(name):
            print(name, sizes_before.get(name), "became", sizes_after.get(name))
    assert abs(after - before) <= before / 100
    assert atoll.leaks() == []
