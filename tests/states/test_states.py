"""Pausing, resuming, forking and snapshots through the official SDK, unchanged."""

import asyncio
import time
import urllib.request

import pytest
from e2b import AsyncSandbox, NotFoundException, Sandbox, SandboxException, SandboxQuery, SandboxState

from harness.atoll import DRIVER, wait_until

pytestmark = pytest.mark.skipif(DRIVER == "container", reason="containers keep no memory on disk")

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


def states(box):
    return box.get_info().state


def boot_id(box):
    return box.commands.run(BOOT_ID).stdout.strip()


def test_pause_and_resume_keep_memory_and_disk(atoll):
    box = Sandbox.create(timeout=600)
    box.files.write("/home/user/kept", "on disk")
    count = box.commands.run("i=0; while true; do i=$((i+1)); echo $i > /dev/shm/i; sleep 0.1; done", background=True)
    before, address = boot_id(box), box.sandbox_id
    assert box.pause() is True
    assert box.pause() is False, "it is paused already"
    assert states(box) == SandboxState.PAUSED
    again = Sandbox.connect(address, timeout=600)
    assert again.sandbox_id == address
    assert states(again) == SandboxState.RUNNING
    assert boot_id(again) == before
    assert again.files.read("/home/user/kept") == "on disk"
    # The process counts on where it stood.
    first = int(again.commands.run("cat /dev/shm/i").stdout)
    wait_until(lambda: int(again.commands.run("cat /dev/shm/i").stdout) > first, 20, "it goes on")
    assert count.pid in [process.pid for process in again.commands.list()]
    clock = float(again.commands.run("date +%s.%N").stdout)
    assert abs(clock - time.time()) < 5, "the clock was set"
    assert again.kill() is True


def test_pause_without_memory_boots_anew(atoll):
    box = Sandbox.create(timeout=600)
    box.files.write("/home/user/kept", "on disk")
    before = boot_id(box)
    assert box.pause(keep_memory=False) is True
    again = Sandbox.connect(box.sandbox_id, timeout=600)
    assert boot_id(again) != before
    assert again.files.read("/home/user/kept") == "on disk"
    again.kill()


def test_paused_ones_are_listed_and_killed(atoll):
    mark = {"mark": str(time.time_ns())}
    box = Sandbox.create(timeout=600, metadata=mark)
    box.pause()
    listed = Sandbox.list(query=SandboxQuery(metadata=mark, state=[SandboxState.PAUSED])).next_items()
    assert [info.sandbox_id for info in listed] == [box.sandbox_id]
    running = Sandbox.list(query=SandboxQuery(metadata=mark, state=[SandboxState.RUNNING])).next_items()
    assert running == []
    assert Sandbox.kill(box.sandbox_id) is True
    with pytest.raises(NotFoundException):
        Sandbox.connect(box.sandbox_id)


def test_a_timeout_pauses(atoll):
    box = Sandbox.create(timeout=3, lifecycle={"on_timeout": "pause", "auto_resume": False})
    wait_until(lambda: states(box) == SandboxState.PAUSED, 3 + 10, "it is paused")
    again = Sandbox.connect(box.sandbox_id, timeout=600)
    assert again.commands.run("echo back").stdout == "back\n"
    again.kill()


def test_traffic_resumes(atoll):
    box = Sandbox.create(timeout=600, lifecycle={"on_timeout": "pause", "auto_resume": True})
    box.commands.run("python3 -m http.server 8000", background=True, cwd="/etc")
    address = {"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": "8000"}

    def ask():
        request = urllib.request.Request(f"{atoll.url}/hostname", headers=address)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    wait_until(lambda: _succeeds(ask), 30, "the server listens")
    box.pause()
    assert ask() == box.sandbox_id.encode() + b"\n", "the request that wakes it succeeds"
    assert states(box) == SandboxState.RUNNING
    box.pause()
    # The SDK's own requests wake it too.
    assert box.commands.run("echo awake").stdout == "awake\n"
    box.kill()


def _succeeds(ask):
    try:
        return ask()
    except OSError:
        return None


def test_without_auto_resume_traffic_does_not(atoll):
    box = Sandbox.create(timeout=600)
    box.pause()
    assert box.is_running() is False
    assert states(box) == SandboxState.PAUSED
    box.kill()


def test_a_snapshot_starts_others(atoll):
    box = Sandbox.create(timeout=600)
    box.files.write("/home/user/kept", "from the snapshot")
    box.commands.run("echo 41 > /dev/shm/memory")
    name = f"snapshot-{time.time_ns()}"
    taken = box.create_snapshot(name=name)
    assert box.commands.run("echo on").stdout == "on\n", "the sandbox goes on"
    box.files.write("/home/user/kept", "changed later")
    for reference in [taken.snapshot_id, name]:
        with Sandbox.create(reference, timeout=600) as child:
            assert child.files.read("/home/user/kept") == "from the snapshot"
            assert child.commands.run("cat /dev/shm/memory").stdout == "41\n"
            assert child.commands.run("hostname").stdout.strip() == child.sandbox_id
    found = box.list_snapshots().next_items()
    assert [info.snapshot_id for info in found] == [taken.snapshot_id]
    assert Sandbox.delete_snapshot(taken.snapshot_id) is True
    assert Sandbox.delete_snapshot(taken.snapshot_id) is False
    with pytest.raises(SandboxException):
        Sandbox.create(taken.snapshot_id)
    box.kill()


def test_a_fork_goes_on_where_its_parent_was(atoll):
    box = Sandbox.create(timeout=600)
    box.commands.run("echo parent > /dev/shm/who; echo disk > /home/user/who")
    before = boot_id(box)
    children = box.fork(count=3, timeout=600)
    assert len(children) == 3
    assert boot_id(box) == before, "the parent goes on"
    for child in children:
        assert isinstance(child, Sandbox), child
        assert child.sandbox_id != box.sandbox_id
        assert boot_id(child) == before
        assert child.commands.run("cat /dev/shm/who /home/user/who").stdout == "parent\ndisk\n"
        child.commands.run("echo child > /dev/shm/who; echo child > /home/user/who")
    assert box.commands.run("cat /dev/shm/who /home/user/who").stdout == "parent\ndisk\n"
    for child in children:
        assert child.kill() is True
    box.kill()


def test_forks_are_strangers_to_each_other(atoll):
    box = Sandbox.create(timeout=600)
    first, second = box.fork(count=2, timeout=600)
    uuid = "cat /proc/sys/kernel/random/uuid"
    key = "openssl ecparam -genkey -name prime256v1 -noout 2>/dev/null | sha256sum || head -c 32 /dev/urandom | sha256sum"
    for command in [uuid, key, "hostname", "head -c 16 /dev/urandom | sha256sum"]:
        answers = {b.commands.run(command).stdout for b in (box, first, second)}
        assert len(answers) == 3, command
    tokens = [b.connection_config.sandbox_headers["X-Access-Token"] for b in (box, first, second)]
    assert len(set(tokens)) == 3
    # A child cannot use its parent's token, nor the parent a child's.
    for target, token, works in [(first, tokens[0], False), (box, tokens[1], False), (first, tokens[1], True)]:
        request = urllib.request.Request(
            f"{atoll.url}/envs",
            headers={"E2b-Sandbox-Id": target.sandbox_id, "E2b-Sandbox-Port": "49983", "X-Access-Token": token},
        )
        try:
            status = urllib.request.urlopen(request, timeout=30).status
        except urllib.error.HTTPError as error:
            status = error.code
        assert (status == 200) == works, (target.sandbox_id, status)
    names = first.commands.run("env").stdout
    assert box.sandbox_id not in names and first.sandbox_id in names
    for b in (first, second, box):
        b.kill()


def test_two_of_one_template_differ(atoll):
    boxes = [Sandbox.create(timeout=600) for _ in range(2)]
    for command in [
        "cat /proc/sys/kernel/random/uuid",
        "hostname",
        "head -c 16 /dev/urandom | sha256sum",
        "python3 -c 'import secrets; print(secrets.token_hex())'",
    ]:
        assert len({box.commands.run(command).stdout for box in boxes}) == 2, command
    for box in boxes:
        box.kill()


async def test_async_pause_and_fork(atoll):
    box = await AsyncSandbox.create(timeout=600)
    before = (await box.commands.run(BOOT_ID)).stdout
    assert await box.pause() is True
    box = await AsyncSandbox.connect(box.sandbox_id, timeout=600)
    assert (await box.commands.run(BOOT_ID)).stdout == before
    children = await box.fork(count=2, timeout=600)
    outputs = await asyncio.gather(*(child.commands.run(BOOT_ID) for child in children))
    assert [output.stdout for output in outputs] == [before, before]
    await asyncio.gather(*(child.kill() for child in children), box.kill())


def test_connections_inside_survive_a_pause(atoll):
    box = Sandbox.create(timeout=600)
    box.files.write(
        "/home/user/echo.py",
        "import socket, threading\n"
        "s = socket.create_server(('127.0.0.1', 7000))\n"
        "c = socket.create_connection(('127.0.0.1', 7000))\n"
        "p, _ = s.accept()\n"
        "open('/dev/shm/open', 'w').write('yes')\n"
        "n = 0\n"
        "while True:\n"
        "    c.sendall(b'x' * 1000); got = b''\n"
        "    while len(got) < 1000: got += p.recv(1000 - len(got))\n"
        "    n += 1; open('/dev/shm/n', 'w').write(str(n))\n"
        "    __import__('time').sleep(0.05)\n",
    )
    box.commands.run("python3 /home/user/echo.py", background=True)
    wait_until(lambda: box.files.exists("/dev/shm/n"), 30, "the stream flows")
    box.pause()
    box = Sandbox.connect(box.sandbox_id, timeout=600)
    first = int(box.files.read("/dev/shm/n") or 0)
    wait_until(lambda: int(box.files.read("/dev/shm/n") or 0) > first, 20, "the stream flows on")
    box.kill()
