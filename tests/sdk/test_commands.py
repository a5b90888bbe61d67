"""Commands through the official SDK."""

import time

import pytest
from e2b import (
    AsyncSandbox,
    AuthenticationException,
    CommandExitException,
    InvalidArgumentException,
    TimeoutException,
)

from harness.atoll import wait_until


def test_output_and_exit_code(sandbox):
    result = sandbox.commands.run("echo out; echo err >&2")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 0)
    with pytest.raises(CommandExitException) as failure:
        sandbox.commands.run("echo gone >&2; exit 7")
    assert failure.value.exit_code == 7 and failure.value.stderr == "gone\n"


def test_user_directory_and_environment(sandbox):
    assert sandbox.commands.run("whoami; pwd").stdout == "user\n/home/user\n"
    assert sandbox.commands.run("whoami; pwd", user="root", cwd="/tmp").stdout == "root\n/tmp\n"
    assert sandbox.commands.run("sudo whoami").stdout == "root\n"
    assert sandbox.commands.run("echo $A$B", envs={"A": "1", "B": "2"}).stdout == "12\n"
    with pytest.raises(InvalidArgumentException, match="cwd '/nowhere' does not exist"):
        sandbox.commands.run("true", cwd="/nowhere")
    with pytest.raises(AuthenticationException, match="invalid username: 'nobody-here'"):
        sandbox.commands.run("true", user="nobody-here")


def test_streams_while_it_runs(sandbox):
    seen = []
    sandbox.commands.run(
        "for n in 1 2 3; do echo $n; sleep 0.3; done",
        on_stdout=lambda text: seen.append((time.monotonic(), text)),
    )
    assert "".join(text for _, text in seen) == "1\n2\n3\n"
    assert seen[-1][0] - seen[0][0] > 0.4


def test_stdin(sandbox):
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.commands.send_stdin(handle.pid, "hello ")
    sandbox.commands.send_stdin(handle.pid, "there")
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "hello there"


def test_background_list_connect_kill(sandbox):
    script = "echo early; until [ -e /tmp/go ]; do sleep 0.05; done; echo unheard; touch /tmp/said; sleep 30"
    handle = sandbox.commands.run(script, background=True)
    listed = [process for process in sandbox.commands.list() if process.pid == handle.pid]
    assert len(listed) == 1
    handle.disconnect()
    sandbox.files.write("/tmp/go", "")
    wait_until(lambda: sandbox.files.exists("/tmp/said"), 10, "it has spoken")
    again = sandbox.commands.connect(handle.pid)
    assert again.kill() is True
    with pytest.raises(CommandExitException) as failure:
        again.wait()
    assert failure.value.stdout.endswith("unheard\n"), "what was printed while nobody listened is kept"
    assert sandbox.commands.kill(handle.pid) is False


def test_timeout_kills(sandbox):
    with pytest.raises(TimeoutException):
        sandbox.commands.run("sleep 61.5", timeout=1)
    look = "pgrep -f 'sleep 61.5' | grep -v $$ || true"
    wait_until(lambda: sandbox.commands.run(look).stdout.strip() == "", 10, "it is gone")


def test_a_flood_arrives_whole(sandbox):
    result = sandbox.commands.run("seq 1 400000", timeout=60)
    assert result.stdout.endswith("400000\n")
    assert result.stdout.count("\n") == 400000


def test_orphans_are_reaped(sandbox):
    sandbox.commands.run("for n in $(seq 50); do (setsid sleep 0.1 &) ; done; sleep 0.6")
    zombies = sandbox.commands.run("ps -eo stat= | grep -c '^Z' || true").stdout.strip()
    assert zombies == "0"


def test_many_at_once(sandbox):
    handles = [sandbox.commands.run(f"sleep 0.2; echo {n}", background=True) for n in range(40)]
    assert [handle.wait().stdout for handle in handles] == [f"{n}\n" for n in range(40)]


def test_real_work(sandbox):
    assert sandbox.commands.run("node -e 'console.log([1,2].map(x => x + 1).join())'").stdout == "2,3\n"
    assert sandbox.commands.run("git init -q r && cd r && git status --short && echo ok").stdout == "ok\n"
    assert "pip" in sandbox.commands.run("pip --version").stdout
    assert sandbox.commands.run("python -m venv v && v/bin/python -c 'print(1)'", timeout=120).stdout == "1\n"
    assert sandbox.commands.run("curl --version | head -1; ss -H -ltn | head -1; ps -o comm= 1").exit_code == 0


async def test_async_commands(atoll):
    async with await AsyncSandbox.create(timeout=120) as box:
        seen = []
        result = await box.commands.run("echo a; echo b >&2", on_stdout=seen.append)
        assert (result.stdout, result.stderr, seen) == ("a\n", "b\n", ["a\n"])
        handle = await box.commands.run("cat", background=True, stdin=True)
        await box.commands.send_stdin(handle.pid, "x")
        await box.commands.close_stdin(handle.pid)
        assert (await handle.wait()).stdout == "x"
        slow = await box.commands.run("sleep 60", background=True)
        assert await slow.kill()
        with pytest.raises(TimeoutException):
            await box.commands.run("sleep 60", timeout=1)
