"""Files through the official SDK."""

import os
import urllib.error
import urllib.request

import pytest
from e2b import (
    AsyncSandbox,
    CommandExitException,
    FileNotFoundException,
    FilesystemEventType,
    FileType,
    NotEnoughSpaceException,
    Sandbox,
    SandboxException,
)

from harness.atoll import wait_until


def test_write_and_read(sandbox):
    info = sandbox.files.write("a/b/c.txt", "héllo")
    assert info.path == "/home/user/a/b/c.txt"
    assert sandbox.files.read("a/b/c.txt") == "héllo"
    blob = bytes(range(256)) * 4096
    sandbox.files.write("/tmp/blob", blob)
    assert bytes(sandbox.files.read("/tmp/blob", format="bytes")) == blob
    assert b"".join(sandbox.files.read("/tmp/blob", format="stream")) == blob
    assert sandbox.commands.run("stat -c %U /tmp/blob").stdout == "user\n"
    with pytest.raises(FileNotFoundException):
        sandbox.files.read("/tmp/absent")


def test_write_many(sandbox):
    written = sandbox.files.write_files([{"path": f"many/{n}", "data": str(n)} for n in range(5)])
    assert [info.name for info in written] == ["0", "1", "2", "3", "4"]
    assert sandbox.commands.run("cat many/*").stdout == "01234"


def test_list_info_exists(sandbox):
    sandbox.files.make_dir("dir/deep/er")
    sandbox.files.write("dir/file", "12345")
    sandbox.commands.run("ln -s file dir/link")
    names = {entry.name: entry for entry in sandbox.files.list("dir")}
    assert set(names) == {"deep", "file", "link"}
    assert names["deep"].type == FileType.DIR and names["file"].type == FileType.FILE
    assert len(sandbox.files.list("dir", depth=3)) == 4
    info = sandbox.files.get_info("dir/file")
    assert (info.size, info.owner, info.permissions) == (5, "user", "-rw-r--r--")
    assert sandbox.files.exists("dir/file") and not sandbox.files.exists("dir/none")
    assert sandbox.files.make_dir("dir/deep") is False


def test_move_and_remove(sandbox):
    sandbox.files.write("from", "x")
    entry = sandbox.files.rename("from", "over/there")
    assert entry.path == "/home/user/over/there"
    assert not sandbox.files.exists("from")
    sandbox.files.remove("over")
    assert not sandbox.files.exists("over")


def test_watch(sandbox):
    sandbox.files.make_dir("watched/sub")
    handle = sandbox.files.watch_dir("watched", recursive=True)
    sandbox.files.write("watched/new", "1")
    sandbox.files.write("watched/sub/inner", "1")
    sandbox.files.remove("watched/new")
    seen = []

    def complete():
        seen.extend(handle.get_new_events())
        kinds = {(event.type, event.name) for event in seen}
        return {
            (FilesystemEventType.CREATE, "new"),
            (FilesystemEventType.WRITE, "new"),
            (FilesystemEventType.REMOVE, "new"),
            (FilesystemEventType.CREATE, "sub/inner"),
        } <= kinds

    wait_until(complete, 10, "all events")
    handle.stop()
    with pytest.raises(SandboxException):
        sandbox.files.watch_dir("not-there")


def test_signed_urls_open_one_file(sandbox):
    sandbox.files.write("public.txt", "for you")
    url = sandbox.download_url("public.txt", use_signature_expiration=60)
    assert urllib.request.urlopen(url, timeout=10).read() == b"for you"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url.replace("public.txt", "other.txt"), timeout=10)
    assert refused.value.code in (401, 400, 502)
    expired = sandbox.download_url("public.txt", use_signature_expiration=-10)
    with pytest.raises(urllib.error.HTTPError) as late:
        urllib.request.urlopen(expired, timeout=10)
    assert late.value.code == 401 and b"signature is already expired" in late.value.read()


def test_no_space_is_said(atoll):
    """A full sandbox says so, the host's disk does not fill, and there is a way back."""
    layers = os.path.join(atoll.data_dir, "layers")
    with Sandbox.create(timeout=120) as box:
        free = int(box.commands.run("df --output=avail -B1 / | tail -1").stdout)
        assert free < 64 * 2**30, "the writable layer has a limit"
        # All but a little is promised to a file, which takes no time; the SDK's own bytes do the rest.
        box.commands.run(f"fallocate -l {free - (48 << 20)} /ballast", user="root")
        with pytest.raises(NotEnoughSpaceException):
            box.files.write("/home/user/big", bytes(96 << 20))
        with pytest.raises(CommandExitException) as failure:
            box.commands.run("head -c 96M /dev/zero > /tmp/more", user="root")
        assert "No space left on device" in failure.value.stderr

        for name in os.listdir(layers):
            status = os.stat(os.path.join(layers, name))
            assert status.st_size <= free + (2 << 30), f"{name} has grown"
            assert status.st_blocks * 512 < 1 << 30, f"{name} takes what was only promised"
        with Sandbox.create(timeout=60) as other:
            other.files.write("note", "fine")

        box.commands.run("rm -f /ballast /tmp/more /home/user/big", user="root")
        box.files.write("note", "room again")
        assert box.files.read("note") == "room again"


async def test_async_files(atoll):
    async with await AsyncSandbox.create(timeout=60) as box:
        await box.files.make_dir("w")
        events = []
        handle = await box.files.watch_dir("w", on_event=events.append)
        await box.files.write("w/one", "1")
        assert await box.files.read("w/one") == "1"
        assert [entry.name for entry in await box.files.list("w")] == ["one"]
        await box.files.rename("w/one", "w/two")
        await box.files.remove("w/two")
        import asyncio

        async with asyncio.timeout(10):
            while not any(event.type == FilesystemEventType.REMOVE for event in events):
                await asyncio.sleep(0.05)
        await handle.stop()
