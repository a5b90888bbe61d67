"""Everything that can be killed is, at random moments of what states are made and used for.

Atoll itself, a machine's monitor, the guest's first process, and the disk's last free block: after
each strike nothing is lost that was paused, everything else runs or has ended with a reason, no
half-made template can be used; and in the end nothing is left.
"""

import glob
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time

import pytest
from e2b import Sandbox

import small_root
from harness.atoll import DRIVER, WORK, Atoll, golden_data_dir, wait_until
from harness.leaks import instance_name

pytestmark = pytest.mark.skipif(DRIVER == "container", reason="containers keep no memory on disk")

KILLS = int(os.environ.get("ATOLL_KILLS", "10"))
OPERATIONS = ["create", "pause", "resume", "fork", "template"]
VICTIMS = ["atoll", "monitor", "first process", "disk"]
INSIDE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "inside")
DISK_SIZE = 12 << 30


class Disk:
    """A file system of its own for the data directory, which can be filled to the last block."""

    def __init__(self, path):
        self.path, self.image = path, path + ".img"
        self.ballast = os.path.join(path, "ballast")
        if os.path.ismount(path):
            # A run that was broken off left it.
            subprocess.run(["umount", "--lazy", path], check=True)
        os.makedirs(path, exist_ok=True)
        with open(self.image, "wb") as file:
            file.truncate(DISK_SIZE)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", self.image], check=True)
        subprocess.run(["mount", "-o", "loop", self.image, path], check=True)

    def free(self):
        about = os.statvfs(self.path)
        return about.f_bavail * about.f_frsize

    def fill(self, leave):
        with open(self.ballast, "wb") as file:
            # Others write too, so what is there may be less than what there was.
            for _ in range(100):
                try:
                    os.posix_fallocate(file.fileno(), 0, max(1, os.stat(self.ballast).st_size + self.free() - leave))
                    return
                except OSError:
                    continue

    def empty(self):
        if os.path.exists(self.ballast):
            os.remove(self.ballast)

    def remove(self):
        for log in glob.glob(os.path.join(self.path, "*.log")):
            shutil.copy(log, self.path + ".log")
        subprocess.run(["umount", self.path], check=True)
        os.remove(self.image)
        os.rmdir(self.path)


def monitors(atoll):
    """The processes that run machines of this instance."""
    group = f"atoll-{instance_name(atoll.data_dir)}/"
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            program = os.readlink(f"/proc/{pid}/exe")
            with open(f"/proc/{pid}/cgroup") as file:
                if "qemu-system" in program and group in file.read():
                    found.append(int(pid))
        except OSError:
            continue
    return found


class World:
    """What the test was told, and so may rely on."""

    def __init__(self, atoll, disk, draw):
        self.atoll, self.disk, self.draw = atoll, disk, draw
        self.running, self.paused = {}, {}
        self.made = 0
        self.tally = {}

    def options(self):
        return {**self.atoll.sdk_options(), "retries": 0, "request_timeout": 60}

    def state(self, name):
        status, body, _ = self.atoll.request("GET", f"/v1/sandboxes/{name}")
        assert status == 200, f"{name} is unknown: {status} {body}"
        return body["state"]

    def lasting_state(self, name):
        passing = {"starting", "pausing", "resuming", "stopping"}

        def lasting():
            state = self.state(name)
            return state if state["state"] not in passing else None

        return wait_until(lasting, 60, f"{name} is in a state that lasts")

    def box(self):
        """A sandbox that runs, with a mark in its memory and on its disk."""
        box = Sandbox.create(timeout=3600, **self.options())
        mark = f"{self.made}-{self.draw.randrange(1 << 32)}"
        self.made += 1
        box.commands.run(f"echo {mark} > /home/user/mark; sync; echo {mark} > /dev/shm/mark")
        self.running[box.sandbox_id] = mark
        return box

    def has_room(self):
        status, body, _ = self.atoll.request("POST", "/v2/sandboxes", {"templateID": "base"})
        assert status in (201, 507), body
        if status == 201:
            Sandbox.kill(body["sandboxID"], **self.options())
        return status == 201

    def is_whole(self, name, mark):
        box = Sandbox.connect(name, timeout=3600, **self.options())
        return box.commands.run("cat /dev/shm/mark /home/user/mark").stdout == f"{mark}\n{mark}\n"

    # What is struck.

    def create(self):
        Sandbox.create(timeout=3600, **self.options())

    def pause(self, box):
        mark = self.running[box.sandbox_id]
        box.pause()
        self.paused[box.sandbox_id] = mark
        del self.running[box.sandbox_id]

    def resume(self, box):
        Sandbox.connect(box.sandbox_id, timeout=3600, **self.options())

    def fork(self, box):
        box.fork(count=2, timeout=3600)

    def template(self, name, source):
        return self.atoll.request("POST", "/v1/templates", {"name": name, "source": source, "memoryMB": 128})


def strike(world, victim, box, moment):
    """Strikes at a moment from now. Whatever it hits may be anything's end."""
    if victim != "first process":
        time.sleep(moment)
    if victim == "atoll":
        world.atoll.kill()
    elif victim == "monitor":
        alive = monitors(world.atoll)
        if alive:
            os.kill(world.draw.choice(alive), signal.SIGKILL)
    elif victim == "first process" and box:
        try:
            box.commands.run(f"python3 /tmp/end.py {moment}", user="root", background=True)
        except Exception:
            pass
    elif victim == "disk":
        world.disk.fill(world.draw.choice([0, 0, 1 << 20, 16 << 20]))


def one_round(world, number, scratch):
    draw, atoll = world.draw, world.atoll
    operation, victim = draw.choice(OPERATIONS), draw.choice(VICTIMS)
    moment = draw.uniform(0.0, 6.0 if operation == "template" else 1.2)
    about = f"round {number}: {victim} struck {moment:.2f} s into {operation}"
    print(about, flush=True)
    world.tally[(operation, victim)] = world.tally.get((operation, victim), 0) + 1

    box = world.box()
    with open(os.path.join(INSIDE, "end_first_process.py")) as source:
        box.files.write("/tmp/end.py", source.read())
    target = box if operation in ("pause", "resume", "fork") else None
    if operation == "resume":
        world.pause(box)
    name, source = f"t{number}", None
    if operation == "template":
        source = small_root.make(os.path.join(scratch, name), f"mark of {name}")
    work = {
        "create": lambda: world.create(),
        "pause": lambda: world.pause(box),
        "resume": lambda: world.resume(box),
        "fork": lambda: world.fork(box),
        "template": lambda: world.template(name, source),
    }[operation]

    def quietly():
        try:
            work()
        except Exception:
            # What was struck may fail in any way; what matters is what is left.
            pass

    if victim == "first process" and operation != "resume":
        strike(world, victim, box, moment)
    thread = threading.Thread(target=quietly)
    thread.start()
    if victim != "first process":
        strike(world, victim, box, moment)
    thread.join(150)
    assert not thread.is_alive(), f"{about}: it hangs"
    if victim == "disk":
        world.disk.empty()
        if atoll.process is None:
            atoll.start()
        wait_until(world.has_room, 30, f"{about}: that there is room again is noticed")
    if victim == "first process":
        time.sleep(max(0.0, moment))
    if atoll.process is None:
        atoll.start()
    check(world, about, target, victim)
    if operation == "template":
        check_template(world, about, name, source)
        shutil.rmtree(os.path.join(scratch, name))
    tidy(world)


def check(world, about, target, victim):
    settle(world, about)
    lost = 0
    for name, mark in list(world.paused.items()):
        state = world.state(name)
        if target is not None and name == target.sandbox_id:
            continue
        # Nobody asked for it, so there it is.
        assert state["state"] == "paused", f"{about}: paused {name} is {state}"
    for name, mark in list(world.running.items()) + list(world.paused.items()):
        is_target = target is not None and name == target.sandbox_id
        if name in world.paused and not is_target:
            continue
        state = world.lasting_state(name)
        if state["state"] == "ended":
            lost += 1
            assert state["reason"]["kind"], f"{about}: {name} ended without a reason"
            assert victim in ("monitor", "first process"), f"{about}: {name} was lost: {state}"
            world.running.pop(name, None)
            world.paused.pop(name, None)
            continue
        try:
            whole = world.is_whole(name, mark)
        except Exception as error:
            if victim in ("first process", "monitor"):
                # It had its last moments still before it, or nobody had noticed its end.
                lost += 1
                wait_until(lambda: world.state(name)["state"] == "ended", 15, f"{about}: {name} ends: {error!r}")
                world.running.pop(name, None)
                world.paused.pop(name, None)
                continue
            raise AssertionError(f"{about}: {name} is {state}, but {error!r}") from error
        assert whole, f"{about}: {name} is not what it was"
        world.paused.pop(name, None)
        world.running[name] = mark
    assert lost <= 1 or victim != "monitor", f"{about}: one monitor's end was {lost} sandboxes'"


def settle(world, about):
    """Nothing stays between two states."""
    passing = {"starting", "pausing", "resuming", "stopping"}

    def settled():
        status, body, _ = world.atoll.request("GET", "/v1/sandboxes?state=running,paused,ended")
        assert status == 200, body
        return not any(entry["state"]["state"] in passing for entry in body)

    wait_until(settled, 60, f"{about}: all are in a state that lasts")


def check_template(world, about, name, source):
    """It is there whole, or not at all; and it can be built then."""
    atoll = world.atoll

    def build():
        status, body, _ = atoll.request("GET", "/v1/templates")
        assert status == 200, body
        return [b for t in body if name in t["names"] for b in t["builds"]]

    wait_until(lambda: all(b["status"] in ("ready", "error") for b in build()), 120, f"{about}: builds come to an end")
    if not any(b["status"] == "ready" for b in build()):
        status, body, _ = world.template(name, source)
        assert status == 200, f"{about}: {body}"
    box = Sandbox.create(name, timeout=600, **world.options())
    assert box.commands.run("cat /mark").stdout == f"mark of {name}", about
    box.kill()
    status, body, _ = atoll.request("DELETE", f"/templates/{name}")
    assert status in (200, 204), f"{about}: {body}"


def tidy(world):
    """Ends what nobody was told of, and all but a few of the others."""
    status, body, _ = world.atoll.request("GET", "/v1/sandboxes")
    assert status == 200, body
    known = set(world.running) | set(world.paused)
    for entry in body:
        if entry["state"]["state"] != "ended" and entry["id"] not in known:
            Sandbox.kill(entry["id"], **world.options())
    # One that will be struck by what was begun in it must not be kept.
    for name in list(world.running):
        del world.running[name]
        Sandbox.kill(name, **world.options())
    while len(world.paused) > 3:
        name = next(iter(world.paused))
        assert world.is_whole(name, world.paused.pop(name)), f"{name} is not what it was"
        Sandbox.kill(name, **world.options())
    if len(world.paused) < 2:
        box = world.box()
        world.pause(box)


@pytest.mark.timeout(max(600, KILLS * 30))
def test_kills_at_random_moments():
    golden_data_dir()
    seed = int(os.environ.get("ATOLL_KILLS_SEED", str(random.randrange(1 << 32))))
    print("seed", seed)
    draw = random.Random(seed)
    disk = Disk(os.path.join(WORK, "kills"))
    data_dir = os.path.join(disk.path, "data")
    subprocess.run(["cp", "-a", "--sparse=always", golden_data_dir(), data_dir], check=True)
    before = tree(data_dir)
    atoll = Atoll(data_dir, "--max-sandboxes", "32").start()
    scratch = tempfile.mkdtemp(prefix="atoll-kills-")
    world = World(atoll, disk, draw)
    try:
        for number in range(KILLS):
            one_round(world, number, scratch)
        for name, mark in world.paused.items():
            assert world.is_whole(name, mark), f"{name} is not what it was"
            Sandbox.kill(name, **world.options())
    finally:
        disk.empty()
        if atoll.process is None:
            atoll.start()
        ended = atoll.stop()
        left, after = atoll.leaks(), tree(data_dir)
        disk.remove()
        shutil.rmtree(scratch, ignore_errors=True)
    assert (ended, left) == (0, [])
    assert after == before, "no state is left, and none is lost"
    print({f"{operation}, {victim}": count for (operation, victim), count in sorted(world.tally.items())})


def tree(data_dir):
    """What states there are."""
    folders = ["states", "paused", "forks", "machines"]
    return {folder: sorted(os.listdir(os.path.join(data_dir, folder))) for folder in folders if os.path.isdir(os.path.join(data_dir, folder))}
