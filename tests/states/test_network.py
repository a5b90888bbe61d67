"""Attacks on the network by a microVM's root, who owns all of its network stack.

What a container's root is refused (addresses, routes, raw frames), a machine's root may do: only what
stands outside of the machine holds.
"""

import json
import re
import select
import socket
import subprocess

import pytest
from e2b import CommandExitException, Sandbox

from harness.atoll import DRIVER, wait_until

pytestmark = pytest.mark.skipif(DRIVER == "container", reason="a container's root may do none of this")

METADATA = "169.254.169.254"


def run(box, command):
    """Runs as root; returns (exit code, all output)."""
    try:
        return 0, box.commands.run(command + " 2>&1", user="root", timeout=120).stdout
    except CommandExitException as failure:
        return failure.exit_code, failure.stdout


def host_addresses():
    """Pairs of an address of the host and the length of its prefix."""
    shown = subprocess.run(["ip", "-json", "address"], capture_output=True, text=True, check=True).stdout
    return {
        (address["local"], address["prefixlen"], link["ifname"])
        for link in json.loads(shown)
        for address in link.get("addr_info", [])
    }


def other_of_pair(address):
    """The far end of a link with a prefix of 31 bits."""
    octets = address.split(".")
    return ".".join([*octets[:3], str(int(octets[3]) ^ 1)])


@pytest.fixture
def metadata_address():
    """The host serves the metadata address itself: only the rules stand between."""
    subprocess.run(["ip", "address", "add", f"{METADATA}/32", "dev", "lo"], check=True)
    yield METADATA
    subprocess.run(["ip", "address", "del", f"{METADATA}/32", "dev", "lo"], check=True)


def test_forged_frames_reach_nobody(atoll, metadata_address):
    listeners = []
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        listener = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, 0))
        listeners.append(listener)
    four, six = (listener.getsockname()[1] for listener in listeners)
    # Both listeners hear what the host sends to itself.
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.sendto(b"heard", (metadata_address, four))
    assert listeners[0].recv(100) == b"heard"
    sender = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sender.sendto(b"heard", ("::1", six))
    assert listeners[1].recv(100) == b"heard"

    with Sandbox.create(timeout=600) as box, Sandbox.create(timeout=600) as victim:
        heard = "python3 -u -c \"import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 7777)); print(s.recv(9))\" > /tmp/heard"
        victim.commands.run(heard, background=True)
        wait_until(lambda: "7777" in victim.commands.run("ss -Hlun").stdout, 30, "the victim listens")
        gateway = re.search(r"via (\S+)", run(box, "ip route show default")[1]).group(1)
        found = host_addresses()
        pairs = [address for address, prefix, _ in found if prefix == 31]
        assert len(pairs) >= 2, found
        hosts = [address for address, _, _ in found if "." in address] + [gateway]
        targets = [[address, four] for address in hosts]
        targets += [[address, six] for address, _, _ in found if ":" in address] + [["ff02::1", six]]
        # The outer addresses of all machines, the victim's among them.
        targets += [[other_of_pair(address), 7777] for address in pairs]
        inside = re.search(r"inet (\S+)/", run(box, "ip -4 -o address show dev eth0")[1]).group(1)
        sources = [inside, "127.0.0.1", gateway, *map(other_of_pair, pairs), *pairs[:2]]
        box.files.write("/tmp/forge.py", open("states/inside/forge.py").read())
        plan = {"gateway": gateway, "targets": targets, "sources": sources}
        code, output = run(box, f"python3 /tmp/forge.py '{json.dumps(plan)}'")
        assert code == 0 and "sent" in output, output
        # An honest answer comes back after them, so they are through or will never be.
        assert box.commands.run("echo through").stdout == "through\n"
        readable, _, _ = select.select(listeners, [], [], 0.5)
        assert readable == [], [listener.recvfrom(100) for listener in readable]
        assert victim.commands.run("cat /tmp/heard").stdout == ""


def test_other_addresses_and_routes_lead_nowhere(atoll, metadata_address):
    listener = socket.create_server(("0.0.0.0", 0), backlog=100)
    port = listener.getsockname()[1]
    with Sandbox.create(timeout=600) as box, Sandbox.create(timeout=600) as victim:
        victim.commands.run("python3 -m http.server 7777 --bind 0.0.0.0", background=True)
        wait_until(lambda: "7777" in victim.commands.run("ss -Hltn").stdout, 30, "the victim listens")
        pairs = [address for address, prefix, _ in host_addresses() if prefix == 31]
        gateway = re.search(r"via (\S+)", run(box, "ip route show default")[1]).group(1)
        attempts = [(metadata_address, port), (gateway, port)]
        attempts += [(address, port) for address in pairs]
        attempts += [(other_of_pair(address), 7777) for address in pairs]
        script = f"""
import concurrent.futures, socket, subprocess

def ip(*words):
    subprocess.run(["ip", *words], check=False, stderr=subprocess.DEVNULL)

def attempt(target, source):
    try:
        socket.create_connection(target, 1.5, source_address=(source, 0) if source else None)
        print("REACHED", target, source)
    except OSError:
        pass

attempts = {attempts!r}
with concurrent.futures.ThreadPoolExecutor(len(attempts)) as threads:
    for source in ("", "10.9.9.9", "169.254.169.253"):
        if source:
            ip("address", "add", source + "/8", "dev", "eth0")
        for address, _ in attempts:
            ip("route", "replace", address + "/32", "dev", "eth0")
        list(threads.map(lambda target: attempt(target, source), attempts))
        # Back to how it was, or nobody hears of the outcome.
        for address, _ in attempts:
            ip("route", "del", address + "/32", "dev", "eth0")
        if source:
            ip("address", "del", source + "/8", "dev", "eth0")
print("tried", 3 * len(attempts))
"""
        box.files.write("/tmp/attempt.py", script)
        code, output = run(box, "python3 /tmp/attempt.py")
        assert code == 0 and f"tried {3 * len(attempts)}" in output, output
        assert "REACHED" not in output, output
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()
        # Whoever cuts its own network off is still its owner's to end.
        run(box, "sh -c '(sleep 0.2; ip link set eth0 down) >/dev/null 2>&1 &'")
        assert box.kill() is True
