"""Terminals through the official SDK."""

from e2b import AsyncSandbox
from e2b.sandbox.commands.command_handle import PtySize

from harness.atoll import wait_until


def test_terminal(sandbox):
    terminal = sandbox.pty.create(PtySize(rows=30, cols=100), timeout=30)
    sandbox.pty.send_stdin(terminal.pid, b"stty size; tty; exit 3\n")
    seen = bytearray()
    code = None
    try:
        terminal.wait(on_pty=seen.extend)
    except Exception as failure:
        code = failure.exit_code
    assert b"30 100" in seen and b"/dev/pts/" in seen
    assert code == 3


def test_resize_and_kill(sandbox):
    terminal = sandbox.pty.create(PtySize(rows=10, cols=10), timeout=30)
    sandbox.pty.resize(terminal.pid, PtySize(rows=44, cols=132))
    sandbox.pty.send_stdin(terminal.pid, b"stty size > /tmp/size\n")
    wait_until(
        lambda: sandbox.files.exists("/tmp/size") and sandbox.files.read("/tmp/size"), 10, "a size"
    )
    assert sandbox.files.read("/tmp/size") == "44 132\n"
    assert sandbox.pty.kill(terminal.pid) is True
    assert sandbox.pty.kill(terminal.pid) is False


async def test_async_terminal(atoll):
    async with await AsyncSandbox.create(timeout=60) as box:
        seen = bytearray()

        async def keep(data: bytes):
            seen.extend(data)

        terminal = await box.pty.create(PtySize(rows=24, cols=80), on_data=keep, timeout=30)
        await box.pty.send_stdin(terminal.pid, b"echo $((40 + 2)); exit\n")
        await terminal.wait()
        assert b"42" in seen
