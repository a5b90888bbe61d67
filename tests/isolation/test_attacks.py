"""Attacks from inside a sandbox, each of which must fail.

The attacker is root in the sandbox: `sudo` is there, so everything is tried as root.
"""

import json
import os
import re
import socket
import subprocess
import time

import pytest
from e2b import CommandExitException, NotFoundException, Sandbox

from harness import leaks
from harness.atoll import wait_until


def run(box, command, timeout=60):
    """Runs as root; returns (exit code, all output)."""
    try:
        result = box.commands.run(command + " 2>&1", user="root", timeout=timeout)
        return 0, result.stdout
    except CommandExitException as failure:
        return failure.exit_code, failure.stdout


def connect_fails(box, address, port):
    code, output = run(
        box,
        f"python3 -c 'import socket; socket.create_connection((\"{address}\", {port}), 1.5); print(\"REACHED\")'",
    )
    assert "REACHED" not in output, f"{address}:{port} was reached"
    assert code != 0


@pytest.fixture(scope="module")
def box(atoll):
    box = Sandbox.create(timeout=600)
    yield box
    box.kill()


@pytest.fixture(scope="module")
def victim(atoll):
    box = Sandbox.create(timeout=600)
    box.commands.run("python3 -m http.server 7777 --bind 0.0.0.0", background=True)
    wait_until(lambda: "7777" in box.commands.run("ss -Hltn").stdout, 10, "the victim listens")
    yield box
    box.kill()


def own_address(box):
    return re.search(r"inet (\S+)/", run(box, "ip -4 -o address show dev eth0")[1]).group(1)


def test_another_sandbox_is_unreachable(box, victim):
    connect_fails(box, own_address(victim), 7777)
    connect_fails(box, own_address(victim), 49983)


CONNECT_ALL = """
import asyncio, json, sys

async def attempt(address, port):
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), 2)
        writer.close()
        print("REACHED", address, port)
    except (OSError, TimeoutError, asyncio.TimeoutError):
        pass

async def main():
    await asyncio.gather(*(attempt(*target) for target in json.load(open(sys.argv[1]))))
    print("tried all")

asyncio.run(main())
"""


def addresses_of_the_host():
    """Every address of every interface, with its zone where it needs one."""
    found = set()
    shown = subprocess.run(["ip", "-json", "address"], capture_output=True, text=True, check=True).stdout
    for link in json.loads(shown):
        for address in link.get("addr_info", []):
            if "local" in address and not address["local"].startswith("fe80"):
                found.add(address["local"])
    return found


def test_the_host_is_unreachable(atoll, box, victim):
    """Every address that the host has, the near ends of all sandboxes' links among them."""
    listener = socket.create_server(("0.0.0.0", 0), backlog=1000)
    port = listener.getsockname()[1]
    gateway = re.search(r"via (\S+)", run(box, "ip route show default")[1]).group(1)
    # The gateway may be an address that no interface of the host has.
    addresses = addresses_of_the_host() | {gateway, "127.0.0.1", "127.0.1.1", "0.0.0.0"}
    assert len(addresses) >= 3, addresses
    # Addresses with a port at which the host itself is sure to be reached.
    for address in addresses_of_the_host():
        if ":" not in address:
            socket.create_connection((address, port), 5).close()
    ports = (port, int(atoll.url.rsplit(":", 1)[1]))
    targets = [(address, port) for address in sorted(addresses) for port in ports]
    box.files.write("/tmp/targets.json", json.dumps(targets))
    box.files.write("/tmp/connect_all.py", CONNECT_ALL)
    code, output = run(box, "python3 /tmp/connect_all.py /tmp/targets.json", timeout=60)
    assert code == 0 and "tried all" in output, output
    assert "REACHED" not in output, output
    listener.close()


@pytest.mark.parametrize("address", ["169.254.169.254", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1"])
def test_private_addresses_are_unreachable(box, address):
    connect_fails(box, address, 80)


def test_metadata_is_unreachable_even_when_the_host_serves_it(box):
    """A real listener on the metadata address: only the rules stand between."""
    subprocess.run(["ip", "address", "add", "169.254.169.254/32", "dev", "lo"], check=True)
    try:
        listener = socket.create_server(("169.254.169.254", 0))
        connect_fails(box, "169.254.169.254", listener.getsockname()[1])
    finally:
        subprocess.run(["ip", "address", "del", "169.254.169.254/32", "dev", "lo"], check=True)


def test_ipv6_is_no_way_round(box):
    assert run(box, "ip -6 address show dev eth0")[1].strip() == ""
    code, _ = run(box, "sysctl -w net.ipv6.conf.all.disable_ipv6=0 && ip -6 address add fd00::1/64 dev eth0")
    assert code != 0


def test_network_cannot_be_reconfigured(box):
    for command in (
        "ip address add 10.9.9.9/8 dev eth0",
        "ip route add 169.254.169.254/32 dev eth0",
        "ip link set eth0 down",
        "python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'",
        "python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)'",
    ):
        assert run(box, command)[0] != 0, command


def test_other_processes_are_invisible(box, victim):
    victim.commands.run("sleep 4321", background=True)
    listing = run(box, "ps -eo args=")[1]
    assert "sleep 4321" not in listing
    assert "atoll up" not in listing
    highest = max(int(line) for line in run(box, "ps -eo pid=")[1].split())
    assert highest < 100_000
    assert run(box, "kill -0 -- -1; cat /proc/1/comm")[1].strip() != "systemd"


def test_the_shared_root_is_never_written(atoll, box):
    run(box, "echo owned > /etc/owned; echo '#!' > /bin/bash.owned; rm -rf /usr/share/doc")
    with Sandbox.create(timeout=60) as other:
        assert not other.files.exists("/etc/owned")
        assert not other.files.exists("/bin/bash.owned")
    for root, _, files in os.walk(os.path.join(atoll.data_dir, "images")):
        assert "owned" not in files and "bash.owned" not in files, root


@pytest.mark.parametrize(
    "command",
    [
        "mount -t tmpfs none /mnt",
        "mount --bind / /mnt",
        "mount -o remount,rw /sys",
        "mount -t proc proc /mnt",
        "umount -l /proc",
        "umount -l /sys",
        "unshare -Urm true",
        "unshare -n true",
        "unshare -m true",
        "chroot / mount -t tmpfs none /mnt",
        "pivot_root /mnt /mnt",
        "swapoff -a && swapon /dev/vda",
    ],
)
def test_mounts_are_refused(box, command):
    code, output = run(box, command)
    assert code != 0, output


def test_no_kernel_module_is_loaded(box):
    assert run(box, "python3 -c 'import ctypes, os; c = ctypes.CDLL(None, use_errno=True); "
               "r = c.syscall(313, 0, b\"\", 0); e = ctypes.get_errno(); print(r, e); exit(0 if r == 0 else 1)'")[0] != 0
    code, _ = run(box, "python3 -c 'import ctypes; c = ctypes.CDLL(None); exit(0 if c.syscall(175, b\"x\", 1, b\"\") == 0 else 1)'")
    assert code != 0


def test_raw_devices_stay_closed(box):
    code, output = run(box, "find /dev -type b")
    assert output.strip() == ""
    for kind, major, minor in (("b", 254, 0), ("b", 7, 0), ("b", 8, 0), ("c", 1, 1), ("c", 10, 232), ("c", 10, 237)):
        code, output = run(box, f"rm -f /tmp/d; mknod /tmp/d {kind} {major} {minor} && head -c1 /tmp/d")
        assert code != 0, output
    for path in ("/dev/mem", "/dev/kmem", "/dev/port", "/dev/kvm", "/dev/loop-control", "/dev/vda", "/dev/fuse"):
        assert run(box, f"head -c1 {path}")[0] != 0, path
    assert run(box, "head -c4 /dev/urandom >/dev/null && echo x >/dev/null && head -c1 /dev/zero | wc -c")[0] == 0


def test_dangerous_proc_and_sys_files_are_masked(box):
    for path in ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/acpi/wakeup"):
        code, output = run(box, f"head -c1 {path} | wc -c")
        assert code != 0 or output.strip().splitlines()[-1] == "0", path
    for path in (
        "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/drop_caches", "/sys/kernel/uevent_helper", "/proc/sys/net/ipv4/ip_forward",
    ):
        code, _ = run(box, f"echo x > {path}")
        assert code != 0, path
    assert run(box, "mkdir /sys/fs/cgroup/x || mkdir /sys/fs/cgroup/memory/x")[0] != 0


def test_ptrace_stays_inside(box):
    """No process of the host has a number in the sandbox, and the guest itself cannot be attached to."""
    attach = (
        "import ctypes; c = ctypes.CDLL(None, use_errno=True); "
        "r = c.ptrace(16, {pid}, 0, 0); print(r, ctypes.get_errno()); exit(0 if r == 0 else 1)"
    )
    for pid in (1, 2, os.getpid()):
        if run(box, f"test -d /proc/{pid}")[0] == 0 and pid != 1:
            continue
        assert run(box, f"python3 -c '{attach.format(pid=pid)}'")[0] != 0, pid


def test_proc_self_exe_cannot_be_overwritten(atoll, box):
    """CVE-2019-5736's way: the guest's own executable, opened for writing through /proc."""
    code, output = run(box, "readlink /proc/1/exe; echo x > /proc/1/exe")
    assert code != 0, output
    script = (
        "import os\n"
        "opened = os.open('/proc/1/exe', os.O_PATH)\n"
        "os.open(f'/proc/self/fd/{opened}', os.O_WRONLY)\n"
    )
    box.files.write("/tmp/exe.py", script)
    assert run(box, "python3 /tmp/exe.py")[0] != 0
    with Sandbox.create(timeout=60) as other:
        assert other.commands.run("echo fine").stdout == "fine\n"


def test_no_descriptor_of_the_host_leaks(box):
    output = run(box, "for p in /proc/[0-9]*; do ls -l $p/fd; done; cat /proc/1/mountinfo")[1]
    assert "/store.sqlite" not in output and "journal" not in output
    roots = run(box, "ls -d /proc/[0-9]*/root /proc/[0-9]*/cwd | while read l; do readlink $l; done | sort -u")[1]
    for line in roots.split():
        assert line.startswith("/"), line
        assert "atoll" not in line and "layers" not in line, line


def test_a_path_with_dots_stays_inside(box):
    for path in ("../../../../../../../../etc/shadow", "/../../../etc/hostname", "/proc/1/root/../../etc/hostname"):
        try:
            text = box.files.read(path, user="root")
        except Exception:
            continue
        host = open("/etc/hostname").read().strip()
        assert text.strip() != host or not host


def test_memory_of_the_host_survives(atoll):
    """Fills far more than the limit: the sandbox pays, the host and its neighbour do not."""
    with Sandbox.create(timeout=120) as glutton, Sandbox.create(timeout=120) as neighbour:
        code, _ = run(glutton, "python3 -c 'x = []\nwhile True: x.append(bytearray(16 << 20))'", timeout=60)
        assert code != 0
        run(glutton, "head -c 4G /dev/zero > /dev/shm/x", timeout=60)
        assert neighbour.commands.run("echo well").stdout == "well\n"


def test_processes_of_the_host_survive(atoll):
    with Sandbox.create(timeout=120) as bomber, Sandbox.create(timeout=60) as neighbour:
        before = len([name for name in os.listdir("/proc") if name.isdigit()])
        bomber.commands.run("bash -c ':(){ :|:& };:'", background=True, user="root")
        grown = 0
        end = time.monotonic() + 5
        while time.monotonic() < end:
            grown = max(grown, len([name for name in os.listdir("/proc") if name.isdigit()]) - before)
            time.sleep(0.1)
        assert grown < 5000
        assert neighbour.commands.run("echo well", timeout=30).stdout == "well\n"
    assert subprocess.run(["/bin/true"]).returncode == 0


def test_disk_of_the_host_survives(atoll):
    with Sandbox.create(timeout=200) as hoarder:
        free = os.statvfs(atoll.data_dir).f_bavail * os.statvfs(atoll.data_dir).f_frsize
        code, output = run(hoarder, "fallocate -l 200G /big || fallocate -l 11G /big; df -B1 --output=size / | tail -1")
        size = int(output.strip().splitlines()[-1])
        assert size <= 11 * 2**30
        code, output = run(hoarder, f"fallocate -l {size + (1 << 30)} /big2")
        assert code != 0 and "No space left" in output
        now = os.statvfs(atoll.data_dir).f_bavail * os.statvfs(atoll.data_dir).f_frsize
        assert free - now < 12 * 2**30


def test_another_tenant_sees_nothing(atoll, box):
    status, made, _ = atoll.request("POST", "/v1/keys", {"name": "stranger", "tenant": "new"})
    assert status in (200, 201), made
    stranger = {"api_key": made["secret"]}
    with pytest.raises(NotFoundException):
        Sandbox.get_info(box.sandbox_id, **stranger)
    with pytest.raises(NotFoundException):
        Sandbox.connect(box.sandbox_id, **stranger)
    assert Sandbox.kill(box.sandbox_id, **stranger) is False
    assert Sandbox.list(**stranger).next_items() == []
    for path in (f"/sandboxes/{box.sandbox_id}/logs", f"/sandboxes/{box.sandbox_id}/metrics", f"/v1/sandboxes/{box.sandbox_id}"):
        assert atoll.request("GET", path, key=made["secret"])[0] == 404, path
    assert atoll.request("GET", "/v1/keys", key=made["secret"])[0] == 403
    assert box.is_running()


def test_the_guest_wants_its_token(atoll, box):
    import http.client
    import urllib.parse

    address = urllib.parse.urlparse(atoll.url)
    for headers in ({}, {"X-Access-Token": "guess"}):
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
        connection.request(
            "POST", "/process.Process/List", body="{}",
            headers={"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": "49983", "Content-Type": "application/json", **headers},
        )
        assert connection.getresponse().status == 401


def test_uid_ranges_do_not_overlap(box, victim):
    first, second = (run(b, "awk '{print $2}' /proc/self/uid_map")[1].strip() for b in (box, victim))
    assert first != second and int(first) >= 65536 and int(second) >= 65536
    assert abs(int(first) - int(second)) >= 65536


def test_system_calls_beyond_the_list_are_refused(box):
    """kexec_load, bpf, perf_event_open, userfaultfd, io_uring_setup, open_by_handle_at, keyctl, add_key."""
    for number in (246, 321, 298, 323, 425, 304, 250, 248):
        code, output = run(
            box,
            "python3 -c 'import ctypes; c = ctypes.CDLL(None, use_errno=True); "
            f"r = c.syscall({number}, 0, 0, 0, 0, 0); e = ctypes.get_errno(); print(r, e); exit(0 if r >= 0 or e not in (1, 38) else 1)'",
        )
        assert code != 0, (number, output)


def test_tools_for_leak_checks_can_see(atoll, box):
    """The leak checks below other tests rest on this: they see a running instance."""
    found = leaks.everything(atoll.data_dir)
    kinds = ("process", "interface", "nftables", "network namespace", "route unreachable", "shared file")
    for kind in kinds + ("cgroup", "loop device", "file"):
        assert any(line.startswith(kind) for line in found), (kind, found)
