"""Sandboxes in the mesh: as who they were let in, as far as policy goes, and for as long as they live."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from mesh_world import COUNTER, PATIENCE, World, kill

from harness import leaks
from harness.atoll import ADMIN_KEY, BINARY, DRIVER, SLOWNESS, WORK, copy_of_golden, wait_until

# A microVM has a kernel of its own behind its network slot: no device of the mesh inside, and no IPv6.
MACHINE = DRIVER != "container"

POLICY = """
[services.shop]
nodes = ["tag:shop"]
ports = ["tcp/8080"]

[sandboxes]
%s = ["tag:ci"]

[[allow]]
from = ["tag:ci"]
to = ["service:shop"]

[[allow]]
from = ["tag:web"]
to = ["tag:ci"]
ports = ["tcp/8081"]

[[allow]]
from = ["tag:ci"]
to = ["node:node-3"]
ports = ["tcp/8090"]
"""

# Runs commands with the official SDK: each line is [SANDBOX, COMMAND], and answered by [EXIT CODE, OUTPUT].
SDK = """
import json, sys
from e2b import CommandExitException, Sandbox
for line in sys.stdin:
    sandbox, command = json.loads(line)
    try:
        done = Sandbox.connect(sandbox).commands.run(command, user="root", timeout=60)
        answer = [done.exit_code, done.stdout + done.stderr]
    except CommandExitException as failure:
        answer = [failure.exit_code, failure.stdout + failure.stderr]
    except Exception as failure:
        answer = [None, repr(failure)]
    print(json.dumps(answer), flush=True)
"""

# Prints the first line that comes from HOST PORT.
FIRST = "import socket; print(socket.create_connection(('%s', %d), 5).makefile().readline().strip())"
# Prints those of (HOST, PORT) that take a connection, by way of a device if one is named.
REACH = """
import socket, threading
def knock(place):
    with socket.socket() as caller:
        caller.settimeout(PATIENCE)
        if INTERFACE:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, INTERFACE)
        if caller.connect_ex(place) == 0:
            print(place)
all = [threading.Thread(target=knock, args=[place]) for place in PLACES]
[one.start() for one in all]
[one.join() for one in all]
"""
# Greets whoever comes.
SERVE = """
cat >/tmp/serve.py <<'END'
import socket
server = socket.create_server(("::", 8081), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    with server.accept()[0] as caller:
        caller.sendall(b"hello")
END
setsid python3 /tmp/serve.py >/dev/null 2>&1 &
until ss -Hltn | grep -q 8081; do sleep 0.05; done
"""


@pytest.fixture
def world():
    folder = os.path.join(WORK, f"mesh-{os.getpid()}-sandboxes")
    os.makedirs(folder)
    data = os.path.realpath(copy_of_golden("mesh-sandboxes"))
    made = World(folder, nodes=3, data=data, driver=DRIVER)
    yield made
    made.end()
    shutil.rmtree(folder, ignore_errors=True)


class Tenant:
    """Somebody with a key."""

    def __init__(self, world, key):
        self.world, self.key = world, key
        self.environment = {"ATOLL_API_KEY": key, "ATOLL_URL": world.url}
        sdk = {"E2B_API_KEY": key, "E2B_API_URL": world.url, "E2B_SANDBOX_URL": world.url}
        self.sdk = subprocess.Popen(
            world.spaces[0].words(sys.executable, "-c", SDK),
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True},
            env={**os.environ, **sdk},
        )
        world.processes.append(self.sdk)

    def atoll(self, *words, check=True):
        return self.world.spaces[0].run(BINARY, *words, check=check, env=self.environment)

    def create(self, *words):
        return json.loads(self.atoll("create", "base", "--json", *words).stdout)

    def run(self, sandbox, command):
        self.sdk.stdin.write(json.dumps([sandbox, command]) + "\n")
        self.sdk.stdin.flush()
        return json.loads(self.sdk.stdout.readline())

    def hears(self, sandbox, host, port):
        """What a program in the sandbox hears from there; None if nothing."""
        code, output = self.run(sandbox, f'python3 -c "{FIRST % (host, port)}"')
        return output.strip() if code == 0 else None

    def reaches(self, sandbox, *places, device=b""):
        """What of these a program in the sandbox reaches."""
        script = REACH.replace("PLACES", repr(places)).replace("INTERFACE", repr(device))
        script = script.replace("PATIENCE", str(1.5 * SLOWNESS**0.5))
        code, output = self.run(sandbox, f"cat >/tmp/reach.py <<'END'\n{script}\nEND\npython3 /tmp/reach.py")
        assert code == 0, output
        return output.split("\n")[:-1]

    def shows(self, sandbox):
        all = json.loads(self.atoll("ls", "--json").stdout)
        return next(one for one in all if one["sandboxID"] == sandbox)


def new_tenant(world):
    made = world.spaces[0].run(
        *(BINARY, "key", "new", "test", "--tenant", "new", "--json"),
        env={"ATOLL_API_KEY": ADMIN_KEY, "ATOLL_URL": world.url},
    )
    made = json.loads(made.stdout)
    return Tenant(world, made["secret"]), made["tenant"]


def members(world):
    return {node["name"]: node for node in json.loads(world.atoll("nodes", "--json").stdout)}


def root_changes_nothing(owner, box, allowed):
    if MACHINE:
        # Of its own kernel it is root indeed. Whatever address it takes there, nobody hears it from another than its own.
        code, output = owner.run(box, "ip address add 100.64.9.9/32 dev eth0")
        assert code == 0, output
        for source in "100.64.9.9", "":
            call = f"import socket; socket.create_connection({allowed!r}, 5, ({source!r}, 0)).recv(1)"
            code, output = owner.run(box, f'python3 -c "{call}"')
            assert (code == 0) == (source == ""), (source, output)
        return
    changes = ("ip link set atoll0 down", "ip address add 100.64.9.9/32 dev atoll0", "ip route add 8.8.8.8 dev atoll0")
    changes += ("python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)'",)
    _, output = owner.run(box, "; ".join(f"{change} 2>&1 || echo failed" for change in changes))
    assert output.count("failed") == output.count("not permitted") == len(changes), output


def test_a_sandbox_is_in_the_mesh_as_far_as_policy_goes_and_as_long_as_it_lives(world):
    owner, tenant = new_tenant(world)
    other, _ = new_tenant(world)
    path = os.path.join(world.folder, "policy.toml")
    with open(path, "w") as file:
        file.write(POLICY % tenant)
    world.atoll("policy", "set", path)
    _, shop = world.node(1, world.token("--tags", "shop"))
    _, web = world.node(2, world.token("--tags", "web"))
    # One without a device.
    words = BINARY, "mesh", "up", "--state", world.state(3), "--name", "node-3", "--mode", "userspace"
    world.start(3, "node-3", *words, env={"ATOLL_MESH_TOKEN": world.token("--tags", "web")})
    for number, port in (1, 8080), (1, 8082), (3, 8090):
        world.start(number, f"service-{port}", "python3", "-c", COUNTER, str(port))

    # Nobody takes a tag or a name that is not for him.
    for who, words, cause in [
        (other, ("--mesh", "ci"), "may not have the tag `ci`"),
        (owner, ("--mesh", "shop"), "may not have the tag `shop`"),
        (owner, ("--mesh", "ci", "--mesh-name", "node-1"), "may not be called"),
    ]:
        refused = who.atoll("create", "base", *words, check=False)
        assert refused.returncode != 0 and cause in refused.stderr, refused.stderr
        assert "hint:" in refused.stderr, refused.stderr
    assert set(members(world)) == {"node-1", "node-2", "node-3"}

    made = owner.create("--mesh", "ci", "--mesh-name", "ci-1")
    box, place = made["sandboxID"], made["mesh"]
    address = place["addresses"][0]
    assert (place["name"], place["tags"]) == ("ci-1.mesh.internal", ["ci"])
    assert address.startswith("100.64.") and owner.shows(box)["mesh"] == place
    assert members(world)["ci-1"]["sandbox"] == box
    state = os.path.join(world.data, "agent", "mesh", box)
    assert {oct(os.stat(os.path.join(state, name)).st_mode & 0o77) for name in ("", "node.json")} == {"0o0"}

    # Out of it, by name and address, as policy says and no further.
    assert owner.run(box, "cat /etc/resolv.conf")[1].split() == ["nameserver", address, "search", "mesh.internal"]
    assert owner.hears(box, "shop.mesh.internal", 8080) == "0"
    beyond = (shop, 8082), (web, 22), (world.spaces[1].address, 8080), (world.spaces[0].address, 3000)
    assert owner.hears(box, "node-3", 8090) == "0"
    allowed = ("node-1", 8080), ("shop", 8080), (shop, 8080)
    assert sorted(owner.reaches(box, *allowed, *beyond)) == sorted(map(str, allowed))
    # It may choose the device, and gets no further for it.
    device = b"eth0" if MACHINE else b"atoll0"
    assert owner.reaches(box, (shop, 8080), *beyond, device=device) == [str((shop, 8080))]

    # Into it, over both families if it has both, as policy says and no further.
    owner.run(box, SERVE)
    assert world.look_up(2, web, "ci-1.mesh.internal") == [address]
    assert len(place["addresses"]) == (1 if MACHINE else 2)
    for own in place["addresses"]:
        wait_until(lambda own=own: world.knocks(2, own, 8081, 1), PATIENCE, "the sandbox is reached")
    door = address.replace("100.", "127.")
    wait_until(lambda: world.hears(3, door, 8081, 2), PATIENCE, "the sandbox is reached without a device")
    assert not world.knocks(1, address, 8081, 1)
    assert not world.knocks(2, address, 49983, 1)

    # It finds itself by the name and address that others know it by.
    for own in address, "ci-1":
        assert owner.hears(box, own, 8081) == "hello"

    # Root inside changes nothing of it, and finds no key.
    root_changes_nothing(owner, box, (shop, 8080))

    # One without an identity has nothing of it.
    plain = owner.create()["sandboxID"]
    assert "mesh" not in owner.shows(plain)
    assert owner.reaches(plain, (shop, 8080), (address, 8081)) == []
    shown = owner.run(plain, "cat /etc/resolv.conf; ip link")[1]
    assert "mesh.internal" not in shown and "atoll" not in shown
    # Nor has a child.
    child = owner.atoll("fork", box).stdout.split()[0]
    assert "mesh" not in owner.shows(child)
    assert owner.reaches(child, (shop, 8080), (address, 8081)) == []

    # Paused it is away, and the same afterwards.
    owner.atoll("pause", box)
    assert not world.knocks(2, address, 8081, 1)
    assert owner.shows(box)["mesh"] == place
    owner.atoll("resume", box)
    assert owner.hears(box, "shop", 8080) == "0"
    wait_until(lambda: world.knocks(2, address, 8081, 1), PATIENCE, "the sandbox is reached again")

    # It outlives the program, and is who it was.
    kill(world.coordinator)
    world.coordinator = world.start_coordinator()
    wait_until(lambda: owner.hears(box, "shop", 8080) == "0", PATIENCE, "the sandbox is back in the mesh")
    wait_until(lambda: world.knocks(2, address, 8081, 1), PATIENCE, "the sandbox is reached again")
    assert owner.shows(box)["mesh"] == place

    # Nothing is left, and its name is free.
    owner.atoll("rm", box)
    assert "ci-1" not in members(world) and not os.path.exists(state)
    assert world.look_up(2, web, "ci-1.mesh.internal") == []
    again = owner.create("--mesh", "ci", "--mesh-name", "ci-1", "--timeout", "1")
    assert again["mesh"]["name"] == place["name"] and again["mesh"]["addresses"] != place["addresses"]
    wait_until(lambda: "ci-1" not in members(world), PATIENCE, "its time is up")
    assert os.listdir(os.path.join(world.data, "agent", "mesh")) == []

    world.coordinator.send_signal(signal.SIGTERM)
    assert world.coordinator.wait(60) == 0
    assert leaks.everything(world.data) == []
