"""A coordinator and three nodes, each in a network namespace of its own, on one network."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time

import pytest

from harness.atoll import ADMIN_KEY, BINARY, WORK, wait_until

COORDINATOR = "http://10.231.7.1:3000"
# How long anything may take.
PATIENCE = 60
# How long something that is denied is tried.
TRY = 0.5

POLICY = """
[services.shop]
nodes = ["tag:shop"]
ports = ["tcp/8080"]

[[allow]]
from = ["tag:web"]
to = ["service:shop"]

[[test]]
from = ["tag:web"]
to = ["tag:shop"]
port = "tcp/8080"
expect = "allow"

[[test]]
from = ["tag:web"]
to = ["tag:shop"]
port = "tcp/8081"
expect = "deny"
"""

# Counts aloud on each connection, so that a flow can be seen to go on; PORT as argument.
COUNTER = """
import socketserver, sys, time
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        for number in range(10**6):
            self.request.sendall(b"%d\\n" % number)
            time.sleep(0.05)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address, daemon_threads = True, True
print("listening", flush=True)
Server(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
"""

# Prints each line that comes from ADDRESS PORT.
READER = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60) as connection:
    for line in connection.makefile():
        print(line, end="", flush=True)
"""

# Says whether ADDRESS PORT takes a connection.
KNOCK = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])).close()
except OSError:
    sys.exit(1)
"""


class Space:
    """A network namespace with one address on a network that all share."""

    def __init__(self, name, address):
        self.name, self.address = name, address
        subprocess.run(["ip", "netns", "add", name], check=True)
        self.run("ip", "link", "set", "lo", "up")

    def words(self, *words):
        # Not `ip netns exec`, which would hide the control groups.
        return ["nsenter", f"--net=/run/netns/{self.name}", *words]

    def run(self, *words, check=True, env=None):
        done = subprocess.run(
            self.words(*words), capture_output=True, text=True, timeout=120, env={**os.environ, **(env or {})}
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def start(self, log, *words, env=None):
        """Starts a program and waits for the first line that it prints."""
        with open(log, "ab") as errors:
            process = subprocess.Popen(
                self.words(*words), stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **(env or {})}
            )
        line = process.stdout.readline().decode()
        assert line, f"it ended with {process.wait()}; see {log}"
        return process, line


class World:
    """Four namespaces on one bridge, and what runs in them. The coordinator is in the first."""

    def __init__(self, folder):
        self.folder = folder
        self.spaces, self.processes = [], []
        base = f"atoll-mesh-{os.getpid()}"
        for number in range(1, 5):
            self.spaces.append(Space(f"{base}-{number}", f"10.231.7.{number}"))
        hub = self.spaces[0]
        hub.run("ip", "link", "add", "bridge", "type", "bridge")
        hub.run("ip", "address", "add", f"{hub.address}/24", "dev", "bridge")
        hub.run("ip", "link", "set", "bridge", "up")
        for space in self.spaces[1:]:
            port = f"to-{space.address.rsplit('.')[-1]}"
            hub.run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space.name)
            hub.run("ip", "link", "set", port, "master", "bridge", "up")
            space.run("ip", "address", "add", f"{space.address}/24", "dev", "eth0")
            space.run("ip", "link", "set", "eth0", "up")
        self.coordinator = self.start_coordinator()

    def log(self, name):
        return os.path.join(self.folder, name + ".log")

    def start(self, number, name, *words, env=None):
        process, line = self.spaces[number].start(self.log(name), *words, env=env)
        self.processes.append(process)
        return process, line

    def start_coordinator(self):
        data = os.path.join(self.folder, "data")
        process, line = self.start(
            *(0, "coordinator", BINARY, "up", "--data-dir", data, "--listen", "10.231.7.1:3000"),
            *("--driver", "container", "--no-base", "--pool-min", "1", "--pool-max", "1"),
            env={"ATOLL_API_KEY": ADMIN_KEY},
        )
        assert line.startswith(f"ready {COORDINATOR}"), line
        return process

    def atoll(self, *words, check=True):
        """A command of an administrator, at the coordinator."""
        env = {"ATOLL_API_KEY": ADMIN_KEY, "ATOLL_URL": COORDINATOR}
        return self.spaces[0].run(BINARY, "mesh", *words, check=check, env=env)

    def token(self, *words):
        return self.atoll("token", "create", "--address", COORDINATOR, *words).stdout.strip()

    def state(self, number):
        return os.path.join(self.folder, f"node-{number}")

    def node(self, number, token=None):
        process, line = self.start(
            *(number, f"node-{number}", BINARY, "mesh", "up", "--state", self.state(number)),
            *("--name", f"node-{number}"),
            env={"ATOLL_MESH_TOKEN": token or ""},
        )
        word, name, address = line.split()
        assert (word, name) == ("up", f"node-{number}.mesh.internal")
        return process, address

    def here(self, number, *words, check=True):
        """A command on a node."""
        return self.spaces[number].run(BINARY, "mesh", *words, "--state", self.state(number), check=check)

    def status(self, number):
        return json.loads(self.here(number, "status", "--json").stdout)

    def peer(self, number, name):
        return next((peer for peer in self.status(number)["peers"] if peer["name"] == name), None)

    def look_up(self, number, address, name):
        return self.spaces[number].run("dig", "+short", f"@{address}", name).stdout.split()

    def knocks(self, number, address, port, patience=10):
        return self.spaces[number].run("python3", "-c", KNOCK, address, str(port), str(patience), check=False).returncode == 0

    def sees_nothing_of_the_mesh(self, number):
        """No device of ours, no route of ours."""
        links = self.spaces[number].run("ip", "-o", "link").stdout
        routes = self.spaces[number].run("ip", "route").stdout + self.spaces[number].run("ip", "-6", "route").stdout
        # The other end of the cable names our namespaces.
        return ": atoll" not in links and "dev atoll" not in routes and "100.64." not in routes

    def end(self):
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in reversed(self.processes):
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        for space in self.spaces:
            subprocess.run(["ip", "netns", "delete", space.name], check=False)


class Flow:
    """A connection from one node to another over which something comes all the time."""

    def __init__(self, world, number, address):
        words = world.spaces[number].words("python3", "-u", "-c", READER, address, "8080")
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        world.processes.append(self.process)
        self.count, self.last = 0, 0.0
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            assert int(line) == self.count, line
            self.count, self.last = self.count + 1, time.monotonic()

    def goes_on(self, what):
        wanted = self.count + 5
        wait_until(lambda: self.count >= wanted, PATIENCE, f"the connection goes on {what}")


@pytest.fixture
def world():
    folder = os.path.join(WORK, f"mesh-{os.getpid()}")
    os.makedirs(folder)
    made = World(folder)
    yield made
    made.end()
    shutil.rmtree(folder, ignore_errors=True)


def kill(process):
    process.kill()
    process.wait()


def test_nodes_reach_each_other_by_name_and_nothing_else_does(world):
    once = world.token("--tags", "web")
    web_process, web = world.node(1, once)
    many = world.token("--tags", "shop", "--reuse")
    shop_process, shop = world.node(2, many)
    world.start(2, "counter", "python3", "-u", "-c", COUNTER, "8080")
    world.start(2, "counter", "python3", "-u", "-c", COUNTER, "8081")
    _, other = world.node(3, many)

    # A token for one lets nobody else in, and without the administrator's key there is none.
    words = [BINARY, "mesh", "up", "--state", world.state(9)]
    refused = world.spaces[3].run(*words, check=False, env={"ATOLL_MESH_TOKEN": once})
    assert refused.returncode == 1 and "used up" in refused.stderr, refused.stderr
    assert once not in refused.stderr
    stranger = {"ATOLL_API_KEY": "e2b_" + "b2" * 20, "ATOLL_URL": COORDINATOR}
    for words in ["nodes"], ["token", "create"], ["policy", "show"], ["revoke", "node-1"]:
        refused = world.spaces[0].run(BINARY, "mesh", *words, check=False, env=stranger)
        assert refused.returncode == 1 and "not known" in refused.stderr, refused.stderr

    # All know of each other, and nothing passes.
    wait_until(lambda: world.peer(1, "node-3") and world.peer(3, "node-1"), PATIENCE, "they know each other")
    assert world.look_up(1, web, "node-2.mesh.internal") == [shop]
    assert not any(peer["allowed"] for peer in world.status(1)["peers"])
    assert not world.knocks(1, shop, 8080, TRY)
    assert world.here(1, "ping", "node-2", "--count", "1", check=False).returncode == 1

    # A policy whose tests fail is not taken.
    policy = os.path.join(world.folder, "policy.toml")
    for text, status in [(POLICY.replace('"allow"', '"deny"'), 1), (POLICY, 0)]:
        with open(policy, "w") as file:
            file.write(text)
        assert world.atoll("policy", "test", policy, check=False).returncode == status
        done = world.atoll("policy", "set", policy, check=False)
        assert done.returncode == status, done.stderr
    wait_until(lambda: world.knocks(1, shop, 8080), PATIENCE, "node 1 reaches node 2")
    answer = json.loads(world.here(1, "ping", "node-2", "--count", "1", "--json").stdout)
    assert answer["round_trip_us"] > 0 and answer["endpoint"] == "10.231.7.3:51820", answer

    # What no rule allows does not pass: another port, the other direction, two of the same kind.
    for number, address, port in (1, shop, 8081), (2, web, 8080), (3, shop, 8080):
        assert not world.knocks(number, address, port, TRY)
    assert world.status(1)["denied_outbound"] > 0 and world.status(2)["denied_outbound"] > 0
    assert world.peer(3, "node-2")["allowed"] is False

    # The service's name leads to those that are ready.
    both = sorted([shop, other])
    assert sorted(world.look_up(1, web, "shop.mesh.internal")) == both
    words = [BINARY, "mesh", "serve", "shop", "--port", "8080", "--state", world.state(3)]
    serving, line = world.start(3, "serve", *words)
    assert line == "not ready\n"
    wait_until(lambda: world.look_up(1, web, "shop.mesh.internal") == [shop], PATIENCE, "node 3 is left out")
    world.start(3, "counter", "python3", "-u", "-c", COUNTER, "8080")
    assert serving.stdout.readline() == b"ready\n"
    wait_until(lambda: sorted(world.look_up(1, web, "shop.mesh.internal")) == both, PATIENCE, "node 3 is back")

    # Connections go on without the coordinator, and so does one to a node that is killed and started without it.
    flow = Flow(world, 1, shop)
    flow.goes_on("at all")
    kill(world.coordinator)
    flow.goes_on("without the coordinator")
    kill(shop_process)
    wait_until(lambda: world.sees_nothing_of_the_mesh(2), PATIENCE, "the device of node 2 is gone")
    shop_process, again = world.node(2)
    assert again == shop
    flow.goes_on("to a node that was started again")
    assert world.knocks(1, shop, 8080)
    assert world.look_up(2, shop, "node-1.mesh.internal") == [web]
    assert not world.status(2)["connected"]

    # The coordinator is back with all that it knew.
    world.coordinator = world.start_coordinator()
    wait_until(lambda: world.status(1)["connected"] and world.status(2)["connected"], PATIENCE, "both are back")

    # Who is revoked is out, and what he had open is cut.
    flow.goes_on("before the end")
    began = time.monotonic()
    world.atoll("revoke", "node-2")
    told = time.monotonic()
    assert shop_process.wait(PATIENCE) == 1
    wait_until(lambda: world.peer(1, "node-2") is None, PATIENCE, "node 1 has dropped node 2")
    print(f"out {max(0, flow.last - told):.2f} s after the command, which took {told - began:.2f} s")
    assert flow.last - told <= 2
    assert not world.knocks(1, shop, 8080, TRY)
    wait_until(lambda: world.sees_nothing_of_the_mesh(2), PATIENCE, "the device of node 2 is gone")
    with open(world.log("node-2")) as log:
        text = log.read()
    assert "this node was revoked" in text and many not in text

    # A node that is told to stop leaves nothing.
    web_process.send_signal(signal.SIGTERM)
    assert web_process.wait(PATIENCE) == 0
    wait_until(lambda: world.sees_nothing_of_the_mesh(1), PATIENCE, "the device of node 1 is gone")
    assert not os.path.exists(os.path.join(world.state(1), "node.sock"))
