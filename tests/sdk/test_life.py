"""A sandbox's life through the official SDK."""

import datetime
import time

import pytest
from e2b import (
    AsyncSandbox,
    AuthenticationException,
    NotFoundException,
    Sandbox,
    SandboxException,
    SandboxQuery,
)

from harness.atoll import wait_until


def listed(**arguments):
    paginator = Sandbox.list(**arguments)
    found = []
    while paginator.has_next:
        found += paginator.next_items()
    return found


def ended_state(atoll, box):
    """What the API tells of a sandbox once it has ended."""

    def ended():
        status, body, _ = atoll.request("GET", f"/v1/sandboxes/{box.sandbox_id}")
        assert status == 200, body
        return body["state"] if body["state"]["state"] == "ended" else None

    return wait_until(ended, 5, "the sandbox has ended")


def test_create_run_kill(atoll):
    box = Sandbox.create(timeout=60)
    assert box.is_running()
    assert box.commands.run("python -c 'print(6 * 7)'").stdout == "42\n"
    assert box.kill() is True
    assert box.is_running() is False
    assert box.kill() is False


def test_info_tells_what_was_asked(atoll):
    with Sandbox.create(timeout=90, metadata={"who": "tests", "odd key": "a=b&c d/é"}) as box:
        info = box.get_info()
        assert info.sandbox_id == box.sandbox_id
        assert info.metadata == {"who": "tests", "odd key": "a=b&c d/é"}
        assert info.name == "base"
        left = (info.end_at - datetime.datetime.now(datetime.timezone.utc)).total_seconds()
        assert 80 < left <= 91


def test_list_filters_by_metadata(atoll):
    mark = f"{time.time_ns()} a b=c"
    boxes = [Sandbox.create(timeout=60, metadata={"mark": mark, "n": str(n)}) for n in range(3)]
    try:
        mine = listed(query=SandboxQuery(metadata={"mark": mark}))
        assert [info.sandbox_id for info in mine] == [box.sandbox_id for box in reversed(boxes)]
        one = listed(query=SandboxQuery(metadata={"mark": mark, "n": "1"}))
        assert [info.sandbox_id for info in one] == [boxes[1].sandbox_id]
        paged = listed(query=SandboxQuery(metadata={"mark": mark}), limit=1)
        assert [info.sandbox_id for info in paged] == [info.sandbox_id for info in mine]
        assert listed(query=SandboxQuery(metadata={"mark": "nobody"})) == []
    finally:
        for box in boxes:
            box.kill()


def test_connect_reaches_the_same_sandbox(atoll, sandbox):
    sandbox.files.write("note", "kept")
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.files.read("note") == "kept"
    assert again.commands.run("hostname").stdout == sandbox.commands.run("hostname").stdout


def test_connect_only_extends(atoll):
    with Sandbox.create(timeout=120) as box:
        before = box.get_info().end_at
        Sandbox.connect(box.sandbox_id, timeout=10)
        assert box.get_info().end_at == before
        Sandbox.connect(box.sandbox_id, timeout=600)
        assert box.get_info().end_at > before


def test_set_timeout_shortens_and_extends(atoll):
    with Sandbox.create(timeout=120) as box:
        box.set_timeout(600)
        long = box.get_info().end_at
        box.set_timeout(30)
        assert (long - box.get_info().end_at).total_seconds() == pytest.approx(570, abs=2)


def test_expiry_is_exact_to_the_second(atoll):
    box = Sandbox.create(timeout=3)
    started = time.monotonic()
    wait_until(lambda: not box.is_running(), 6, "the sandbox's time is up")
    assert 2.5 <= time.monotonic() - started <= 4
    state = ended_state(atoll, box)
    assert state["reason"]["kind"] == "timed_out" and state["at"]


def test_a_kill_has_a_reason(atoll):
    box = Sandbox.create(timeout=60)
    box.kill()
    state = ended_state(atoll, box)
    assert state["reason"]["kind"] == "killed" and state["at"]


def test_killed_while_running_tells_the_client(atoll):
    box = Sandbox.create(timeout=60)
    handle = box.commands.run("sleep 60", background=True)
    Sandbox.kill(box.sandbox_id)
    with pytest.raises(Exception, match="killed or reached its end of life"):
        handle.wait()


def test_unknown_things(atoll):
    with pytest.raises(NotFoundException):
        Sandbox.get_info("i00000000000000000000")
    with pytest.raises(SandboxException, match="404: Template"):
        Sandbox.create("no-such-template")
    with pytest.raises(AuthenticationException):
        Sandbox.create(api_key="e2b_" + "0" * 40)
    with pytest.raises(SandboxException, match="Timeout must be greater than 0"):
        Sandbox.create(timeout=-1)


def test_environment_reaches_commands(atoll):
    with Sandbox.create(timeout=60, envs={"COLOUR": "teal"}) as box:
        assert box.commands.run("echo $COLOUR").stdout == "teal\n"
        assert box.commands.run("echo $COLOUR", envs={"COLOUR": "red"}).stdout == "red\n"
        assert box.commands.run("echo $E2B_SANDBOX $E2B_SANDBOX_ID").stdout == f"true {box.sandbox_id}\n"


def test_metrics_come_soon(atoll, sandbox):
    found = wait_until(sandbox.get_metrics, 30, "a metric")
    assert found[0].mem_total > 0 and found[0].disk_total > 0 and found[0].cpu_count >= 1


def test_internet_can_be_denied(atoll):
    probe = (
        "python3 -c 'import socket; s = socket.socket(); s.settimeout(2); "
        "s.connect((\"192.88.99.1\", 9))'"
    )
    with Sandbox.create(timeout=60, allow_internet_access=False) as box:
        result = box.commands.run(f"{probe} 2>&1 || true")
        assert "Error" in result.stdout or "timed out" in result.stdout


def test_two_sandboxes_differ(atoll):
    with Sandbox.create(timeout=60) as one, Sandbox.create(timeout=60) as other:
        assert one.sandbox_id != other.sandbox_id
        one.files.write("/tmp/mine", "secret")
        assert not other.files.exists("/tmp/mine")


async def test_async_life(atoll):
    box = await AsyncSandbox.create(timeout=60, metadata={"kind": "async"})
    assert await box.is_running()
    assert (await box.commands.run("echo hi")).stdout == "hi\n"
    await box.set_timeout(100)
    assert (await box.get_info()).metadata == {"kind": "async"}
    again = await AsyncSandbox.connect(box.sandbox_id)
    assert (await again.commands.run("whoami")).stdout == "user\n"
    assert await box.kill()
    assert not await box.is_running()
