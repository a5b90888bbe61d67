"""A peer that runs no Atoll: Debian's wireguard-go, with the configuration that it is given."""

import os
import subprocess

from mesh_world import COUNTER, PATIENCE

from harness.atoll import wait_until

POLICY = """
[services.shop]
nodes = ["tag:shop"]
ports = ["tcp/8080"]

[[allow]]
from = ["tag:phone"]
to = ["service:shop"]

[[allow]]
from = ["tag:shop"]
to = ["tag:phone"]
ports = ["tcp/8081"]
"""


def bring_up(world, number, file):
    """What `wg-quick` does with a configuration, without rewriting what is not the tunnel's."""
    space, device = world.spaces[number], f"wgp{os.getpid() % 100000}"
    process = subprocess.Popen(space.words("wireguard-go", "-f", device), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    world.processes.append(process)
    socket = f"/var/run/wireguard/{device}.sock"
    wait_until(lambda: os.path.exists(socket), PATIENCE, "wireguard-go is there")
    with open(file) as text:
        lines = text.read().splitlines()
    addresses = next(line for line in lines if line.startswith("Address")).split("=", 1)[1].split(",")
    stripped = "\n".join(line for line in lines if not line.startswith("Address")) + "\n"
    space.run("wg", "setconf", device, "/dev/stdin", text=stripped)
    for address in addresses:
        space.run("ip", "address", "add", address.strip(), "dev", device)
    space.run("ip", "link", "set", device, "mtu", "1420", "up")
    for line in lines:
        if line.startswith("AllowedIPs"):
            for allowed in line.split("=", 1)[1].split(","):
                space.run("ip", "route", "add", allowed.strip(), "dev", device)
    return addresses[0].strip().split("/")[0]


def test_wireguard_go_is_a_peer_with_the_configuration_that_it_is_given(world):
    policy = os.path.join(world.folder, "policy.toml")
    with open(policy, "w") as file:
        file.write(POLICY)
    world.atoll("policy", "set", policy)
    _, shop = world.node(1, world.token("--tags", "shop"))
    for port in 8080, 8082:
        world.start(1, f"counter-{port}", "python3", "-u", "-c", COUNTER, str(port))

    # A node without a device has nothing for it, and is not in its configuration.
    path = os.path.join(world.folder, "phone.conf")
    world.atoll("peer", "add", "phone", "--tags", "phone", "--out", path)
    assert os.stat(path).st_mode & 0o777 == 0o600
    with open(path) as file:
        text = file.read()
    assert text.count("[Peer]") == 1 and "# node-1" in text
    key = next(line for line in text.splitlines() if line.startswith("PrivateKey")).split(" = ")[1]
    shown = world.atoll("peer", "config", "phone").stdout
    assert key not in shown and shown.split("[Peer]")[1:] == text.split("[Peer]")[1:]
    assert "█" in world.atoll("peer", "config", "phone", "--qr").stdout
    again = world.atoll("peer", "add", "phone", "--tags", "phone", "--out", path, check=False)
    assert again.returncode == 1 and "cannot write" in again.stderr
    with open(path) as file:
        assert file.read() == text
    # Nobody keeps the private key, and the token that let the peer in is gone.
    assert world.atoll("token", "ls").stdout.count("phone") == 0
    assert subprocess.run(["grep", "-rqF", key, world.data], check=False).returncode == 1

    # It reaches what policy says, and is reached so, by name too; nothing else passes.
    phone = bring_up(world, 2, path)
    world.start(2, "counter", "python3", "-u", "-c", COUNTER, "8081")
    wait_until(lambda: world.knocks(2, shop, 8080), PATIENCE, "the peer reaches the node")
    assert not world.knocks(2, shop, 8082, 1)
    assert world.look_up(1, shop, "phone.mesh.internal") == [phone]
    wait_until(lambda: world.knocks(1, phone, 8081), PATIENCE, "the node reaches the peer")
    assert not world.knocks(1, phone, 8080, 1)
    nodes = world.atoll("nodes").stdout
    assert "wireguard" in next(line for line in nodes.splitlines() if line.startswith("phone"))

    # Who is put out is out.
    world.atoll("revoke", "phone")
    wait_until(lambda: world.peer(1, "phone") is None, PATIENCE, "the node has dropped the peer")
    assert not world.knocks(2, shop, 8080, 2)
