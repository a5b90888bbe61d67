"""A coordinator and nodes, each in a network namespace of its own, on one network."""

import json
import os
import signal
import subprocess
import threading
import time

from harness.atoll import ADMIN_KEY, BINARY, wait_until

COORDINATOR = "http://10.231.7.1:3000"
# How long anything may take.
PATIENCE = 60

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


# Says whether something is heard from ADDRESS PORT: a door takes a connection before it knows whether it leads anywhere.
LISTEN = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])) as connection:
        sys.exit(not connection.recv(1))
except OSError:
    sys.exit(1)
"""


class Space:
    """A network namespace, with one address on a network that all share if it is given one."""

    def __init__(self, name, address=None):
        self.name, self.address = name, address
        subprocess.run(["ip", "netns", "add", name], check=True)
        self.run("ip", "link", "set", "lo", "up")

    def words(self, *words):
        # Not `ip netns exec`, which would hide the control groups.
        return ["nsenter", f"--net=/run/netns/{self.name}", *words]

    def run(self, *words, check=True, env=None, text=None):
        """Runs a program to its end, with `text` as its input."""
        done = subprocess.run(
            self.words(*words),
            **{"capture_output": True, "text": True, "timeout": 120, "input": text},
            env={**os.environ, **(env or {})},
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
        if not line:
            with open(log) as text:
                raise AssertionError(f"it ended with {process.wait()}: {text.read()}")
        return process, line


class World:
    """Namespaces on one bridge, and what runs in them. The coordinator is in the first."""

    url = COORDINATOR

    def __init__(self, folder, nodes=3, data=None, driver="container"):
        self.data = data or os.path.join(folder, "data")
        self.folder, self.driver = folder, driver
        self.spaces, self.processes = [], []
        self.wire(nodes)
        self.coordinator = self.start_coordinator()

    def wire(self, nodes):
        """Makes the network."""
        base = f"atoll-mesh-{os.getpid()}"
        for number in range(1, nodes + 2):
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

    def log(self, name):
        return os.path.join(self.folder, name + ".log")

    def start(self, number, name, *words, env=None):
        process, line = self.spaces[number].start(self.log(name), *words, env=env)
        self.processes.append(process)
        return process, line

    def run_in_background(self, number, name, *words):
        with open(self.log(name), "ab") as log:
            process = subprocess.Popen(self.spaces[number].words(*words), stdout=subprocess.PIPE, stderr=log)
        self.processes.append(process)
        return process

    def start_coordinator(self):
        process, line = self.start(
            *(0, "coordinator", BINARY, "up", "--data-dir", self.data, "--listen", self.url.removeprefix("http://")),
            *("--driver", self.driver, "--no-base", "--pool-min", "1", "--pool-max", "1"),
            env={"ATOLL_API_KEY": ADMIN_KEY},
        )
        assert line.startswith(f"ready {self.url}"), line
        return process

    def atoll(self, *words, check=True):
        """A command of an administrator, at the coordinator."""
        env = {"ATOLL_API_KEY": ADMIN_KEY, "ATOLL_URL": self.url}
        return self.spaces[0].run(BINARY, "mesh", *words, check=check, env=env)

    def token(self, *words):
        return self.atoll("token", "create", "--address", self.url, *words).stdout.strip()

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

    def flows(self, number, **wanted):
        """The flows that a node knows of and that are so."""
        flows = json.loads(self.here(number, "flows", "--json").stdout)
        return [flow for flow in flows if wanted.items() <= flow.items()]

    def peer(self, number, name):
        return next((peer for peer in self.status(number)["peers"] if peer["name"] == name), None)

    def look_up(self, number, address, name):
        return self.spaces[number].run("dig", "+short", f"@{address}", name).stdout.split()

    def knocks(self, number, address, port, patience=10):
        return self.spaces[number].run("python3", "-c", KNOCK, address, str(port), str(patience), check=False).returncode == 0

    def hears(self, number, address, port, patience=10):
        words = "python3", "-c", LISTEN, address, str(port), str(patience)
        return self.spaces[number].run(*words, check=False).returncode == 0

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

    def __init__(self, world, number, address, port=8080):
        words = world.spaces[number].words("python3", "-u", "-c", READER, address, str(port))
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


def kill(process):
    process.kill()
    process.wait()
