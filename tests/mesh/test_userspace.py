"""Nodes on machines that give them no right and no device, as `nobody`: the real program, real curl, a real etcd."""

import functools
import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time

import pytest
from mesh_world import COUNTER, PATIENCE, Flow, World, kill

from harness.atoll import BINARY, WORK, wait_until

NOBODY = 65534

POLICY = """
[services.shop]
nodes = ["tag:shop"]
ports = ["tcp/8080"]

[[allow]]
from = ["tag:web"]
to = ["service:shop"]
"""

ETCD_POLICY = """
[services.etcd]
nodes = ["tag:etcd"]
ports = ["tcp/2379", "tcp/2380"]

[[allow]]
from = ["tag:etcd"]
to = ["service:etcd"]
"""

# Answers each request over HTTP with who asks and who is asked; NAME, ADDRESS and PORT as arguments.
GREETER = """
import http.server, sys
name = sys.argv[1]
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = f"{name} greets {self.client_address[0]}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer((sys.argv[2], int(sys.argv[3])), Handler)
print("listening", flush=True)
server.serve_forever()
"""

# Answers each datagram with who asks, who is asked and how much that was; NAME, ADDRESS and PORT as arguments.
UDP_GREETER = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[2], int(sys.argv[3])))
print("listening", flush=True)
while True:
    said, at = server.recvfrom(65536)
    server.sendto(f"{sys.argv[1]} greets {at[0]} {len(said)}".encode(), at)
"""

# Sends so many bytes to ADDRESS and PORT, and prints the answer, if there is one within a second.
UDP_CALLER = """
import socket, sys
caller = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
caller.settimeout(1)
caller.connect((sys.argv[1], int(sys.argv[2])))
try:
    caller.send(b"?" * int(sys.argv[3]))
    print(caller.recv(65536).decode())
except OSError:
    pass
"""

# What a program sees of its machine: no /dev/net/tun, the name server that is asked for names, and the program itself, wherever it was built.
VIEW = """
set -e
if [ -d /dev/net ]; then mount -t tmpfs none /dev/net; fi
mount --bind "$1/resolv.conf" /etc/resolv.conf
mount --bind "$2" "$1/atoll"
shift 2
exec "$@"
"""
NO_RIGHTS = [
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"),
    *("--bounding-set=-all", "--inh-caps=-all"),
]


def outside(enter, *words):
    """A command of the provider, in the machine's network."""
    subprocess.run(enter(*words), check=True)


class Machines(World):
    """Machines of nobody; but the numbers in `device` belong to root and have /dev/net/tun."""

    def __init__(self, folder, nodes, device, data):
        self.device = device
        os.chmod(folder, 0o755)
        super().__init__(folder, nodes, data)
        for number in range(1, nodes + 1):
            home = self.home(number)
            os.makedirs(home)
            for name in "atoll", "resolv.conf":
                with open(os.path.join(home, name), "w"):
                    pass
            os.makedirs(self.state(number), mode=0o700)
            if number not in device:
                os.chown(home, NOBODY, NOBODY)
                os.chown(self.state(number), NOBODY, NOBODY)
            space = self.spaces[number]
            # As container runtimes set it: everybody may listen at port 53.
            space.run("sysctl", "-q", "-w", "net.ipv4.ip_unprivileged_port_start=0")
            enter = space.words
            space.outside = functools.partial(outside, enter)
            space.words = self.entrance(number, enter)

    def entrance(self, number, enter):
        view = ["unshare", "--mount", "--propagation", "private", "sh", "-c", VIEW, "sh", self.home(number), BINARY]

        def words(*words):
            if words[0] == "python3":
                # Servers and clients that are not what is tried here; nobody may not run every Python.
                return enter(*words)
            program = os.path.join(self.home(number), "atoll") if words[0] == BINARY else words[0]
            if number in self.device:
                # Its own view of names, and the device.
                mount = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
                script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
                return enter(*mount, script, os.path.join(self.home(number), "resolv.conf"), *words)
            return enter(*view, *NO_RIGHTS, program, *words[1:])

        return words

    def home(self, number):
        return os.path.join(self.folder, f"home-{number}")

    def state(self, number):
        return os.path.join(self.folder, f"home-{number}", "state")

    def join(self, number, token, *options):
        """Starts a node, and lets its machine ask it for names; its process and the address of its services."""
        process, line = self.start(
            *(number, f"node-{number}", BINARY, "mesh", "up", "--state", self.state(number)),
            *("--name", f"node-{number}", *options),
            env={"ATOLL_MESH_TOKEN": token or ""},
        )
        word, name, address = line.split()
        assert (word, name) == ("up", f"node-{number}.mesh.internal")
        with open(os.path.join(self.home(number), "resolv.conf"), "w") as file:
            file.write(f"nameserver {address}\nsearch mesh.internal\noptions timeout:2 attempts:5\n")
        return process, address

    def set_policy(self, text):
        path = os.path.join(self.folder, "policy.toml")
        with open(path, "w") as file:
            file.write(text)
        self.atoll("policy", "set", path)

    def greeter(self, number, address, port):
        self.start(number, f"greeter-{number}", "python3", "-u", "-c", GREETER, f"node-{number}", address, str(port))

    def curl(self, number, url, proxy=None, credentials=None):
        """What the URL answers, or None; through a proxy, whose password curl reads from its input."""
        words = ["curl", "--silent", "--fail", "--max-time", "20", "--noproxy", "" if proxy else "*", "-K", "-", url]
        config = ""
        if proxy:
            words += ["--proxy", proxy, "--proxytunnel"]
            config = f'proxy-user = "{credentials}"\n'
        done = self.spaces[number].run(*words, check=False, text=config)
        return done.stdout if done.returncode == 0 else None

    def secret(self, number):
        with open(os.path.join(self.state(number), "proxy")) as file:
            return file.read().strip()

    def log_text(self, name):
        with open(self.log(name)) as log:
            return log.read()


@pytest.fixture
def machines():
    # Below /tmp, where everybody may enter.
    folder = tempfile.mkdtemp(prefix="atoll-mesh-")
    data = tempfile.mkdtemp(prefix="mesh-", dir=WORK)
    made = []

    def make(nodes, device=()):
        made.append(Machines(folder, nodes, device, data))
        return made[0]

    yield make
    for world in made:
        world.end()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(data, ignore_errors=True)


def has_no_rights(process):
    with open(f"/proc/{process.pid}/status") as file:
        facts = dict(line.split(":\t", 1) for line in file.read().splitlines() if ":\t" in line)
    capabilities = [facts[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]
    uid = facts["Uid"].split()[1]
    return uid == str(NOBODY) and not any(int(text, 16) for text in capabilities)


def test_machines_without_rights_reach_services_by_name_and_what_is_not_allowed_does_not_pass(machines):
    world = machines(4, device=[3])
    web, shop = world.token("--tags", "web"), world.token("--tags", "shop", "--reuse")
    web_process, web_address = world.join(1, web, "--socks", "127.0.0.1:1080")
    shop_process, shop_address = world.join(2, shop, "--mode", "userspace")
    _, device_address = world.join(3, shop)
    _, other_address = world.join(4, world.token("--tags", "other"), "--socks", "127.0.0.1:1080")
    assert (web_address, shop_address, device_address) == ("127.64.0.1", "127.64.0.2", "100.64.0.3")

    # What the machines allow was seen, and said.
    assert has_no_rights(web_process) and has_no_rights(shop_process)
    status = world.status(1)
    assert (status["mode"], status["interface"], status["dns"][0]) == ("userspace", None, "127.64.0.1:53")
    assert "allows no network device" in world.log_text("node-1")
    assert world.status(3)["mode"] == "tun"
    assert world.sees_nothing_of_the_mesh(1)

    # Services at the nodes' own addresses, and one more port that no rule names.
    for number, address in (2, shop_address), (3, device_address), (1, web_address):
        world.greeter(number, address, 8080)
    world.greeter(2, shop_address, 8081)
    file = world.status(1)["proxy_file"]
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    secret = world.secret(1)
    proxies = ["socks5h://127.0.0.1:1080", "http://127.0.0.1:1080"]

    # Nothing passes without a policy.
    wait_until(lambda: world.peer(1, "node-2") and world.peer(2, "node-1"), PATIENCE, "they know each other")
    assert [world.curl(1, "http://node-2:8080/", proxy, secret) for proxy in proxies] == [None, None]
    assert world.curl(1, f"http://{shop_address}:8080/") is None
    world.set_policy(POLICY)
    reached = "node-2 greets 127.64.0.1"
    wait_until(lambda: world.curl(1, f"http://{shop_address}:8080/") == reached, PATIENCE, "node 1 reaches node 2")

    # By name and by address, through both kinds of proxy and through the door; also who has a device.
    for host, answer in [
        ("node-2", reached),
        ("node-2.mesh.internal", reached),
        (shop_address, reached),
        ("100.64.0.2", reached),
        ("node-3.mesh.internal", "node-3 greets 127.64.0.1"),
    ]:
        for proxy in proxies:
            assert world.curl(1, f"http://{host}:8080/", proxy, secret) == answer, (host, proxy)
    assert world.curl(1, "http://node-2.mesh.internal:8080/") == reached
    assert world.curl(1, "http://node-3.mesh.internal:8080/") == "node-3 greets 127.64.0.1"
    assert world.curl(1, "http://shop.mesh.internal:8080/") in (reached, "node-3 greets 127.64.0.1")
    assert world.look_up(1, web_address, "shop.mesh.internal") == ["127.127.0.1"]
    assert sorted(world.look_up(1, web_address, "all.shop.mesh.internal")) == ["127.64.0.2", "127.64.0.3"]
    # Who may not use it has no door for it.
    assert sorted(world.look_up(3, device_address, "shop.mesh.internal")) == ["100.64.0.3", "127.64.0.2"]
    assert world.look_up(1, web_address, "-x127.64.0.2") == ["node-2.mesh.internal."]
    answer = json.loads(world.here(1, "ping", "node-2", "--count", "1", "--json").stdout)
    assert answer["round_trip_us"] > 0 and answer["endpoint"] == "10.231.7.3:51821", answer
    assert world.peer(1, "node-3")["way"] == "flows"

    # Both ends know of the flows, of the rule that let them, and of what they carried.
    rule = POLICY.splitlines().index("[[allow]]") + 1
    for number, began, name, to in (1, "here", "node-3", 3), (2, "there", "node-1", 2), (3, "there", "node-1", 3):
        wanted = {"protocol": "tcp", "began": began, "peer": name, "destination": f"100.64.0.{to}", "way": "flows"}
        flows = world.flows(number, **wanted, destination_port=8080, rule_line=rule)
        asked, answered = ("sent", "received") if began == "here" else ("received", "sent")
        assert any(flow[asked] > 50 and flow[answered] > len(reached) and flow["round_trip_us"] for flow in flows), flows

    # Who has no password, or a wrong one, gets nothing; nobody can read it elsewhere.
    user, password = secret.split(":")
    for proxy in proxies:
        for wrong in f"{user}:{password[:-1]}", f"{user}:", f"x{secret}":
            assert world.curl(1, "http://node-2:8080/", proxy, wrong) is None
    with open(f"/proc/{web_process.pid}/cmdline") as command, open(f"/proc/{web_process.pid}/environ") as environment:
        assert password not in command.read() + environment.read() + world.log_text("node-1")

    # What no rule allows: another port, the other direction, another node, what is not of the mesh.
    for proxy in proxies:
        assert world.curl(1, "http://node-2:8081/", proxy, secret) is None
        assert world.curl(4, "http://node-2:8080/", proxy, world.secret(4)) is None
        assert world.curl(1, "http://10.231.7.1:3000/health", proxy, secret) is None
    assert world.curl(1, f"http://{shop_address}:8081/") is None
    assert world.curl(2, f"http://{web_address}:8080/") is None
    assert world.curl(3, f"http://{web_address}:8080/") is None
    assert world.curl(4, f"http://{shop_address}:8080/") is None
    assert world.here(4, "ping", "node-2", "--count", "1", check=False).returncode == 1

    # A device at one end and none at the other, the other way round; the service sees who calls.
    world.set_policy(POLICY.replace('from = ["tag:web"]', 'from = ["tag:web", "tag:shop"]'))
    wait_until(
        lambda: world.curl(3, "http://node-2.mesh.internal:8080/") == "node-2 greets 127.64.0.3",
        PATIENCE,
        "the node with a device reaches the one without",
    )

    # A machine that lets nobody in is called by those whom it may be called by.
    world.greeter(4, other_address, 8082)
    wall = "table inet wall { chain in { type filter hook input priority 0; ct state new udp dport 51821 drop; }; }"
    world.spaces[4].outside("nft", wall)
    calls = '[[allow]]\nfrom = ["tag:web"]\nto = ["tag:other"]\nports = ["tcp/8082"]\n'
    world.set_policy(POLICY + calls)
    wait_until(
        lambda: world.curl(1, "http://node-4:8082/") == "node-4 greets 127.64.0.1", PATIENCE, "node 4 is called"
    )

    # The name of the service's nodes leads to those that are ready.
    words = [BINARY, "mesh", "serve", "shop", "--port", "8080", "--state", world.state(2)]
    serving, line = world.start(2, "serve", *words)
    assert line == "ready\n"
    assert world.status(2)["services"] == {"shop": True}
    serving.send_signal(signal.SIGTERM)
    assert serving.wait(PATIENCE) == 0
    wait_until(
        lambda: world.look_up(1, web_address, "all.shop.mesh.internal") == ["127.64.0.3"], PATIENCE, "node 2 is left out"
    )

    # A node that was killed starts without the coordinator, from what it knew.
    kill(world.coordinator)
    kill(shop_process)
    shop_process, again = world.join(2, None)
    assert again == shop_address and not world.status(2)["connected"]
    for proxy in proxies:
        assert world.curl(1, "http://node-2:8080/", proxy, secret) == reached
    world.coordinator = world.start_coordinator()
    wait_until(lambda: world.status(1)["connected"] and world.status(2)["connected"], PATIENCE, "both are back")

    # Who is revoked is out, and what was open is cut.
    world.set_policy(POLICY.replace("8080", "8090"))
    world.start(2, "counter", "python3", "-u", "-c", COUNTER, "8090")
    wait_until(lambda: world.knocks(1, shop_address, 8090), PATIENCE, "the counter is reached")
    flow = Flow(world, 1, shop_address, 8090)
    flow.goes_on("before the end")
    world.atoll("revoke", "node-2")
    told = time.monotonic()
    assert shop_process.wait(PATIENCE) == 1
    wait_until(lambda: world.peer(1, "node-2") is None, PATIENCE, "node 1 has dropped node 2")
    print(f"out {max(0, flow.last - told):.2f} s after the command")
    assert flow.last - told <= 2
    assert not world.knocks(1, shop_address, 8090)
    assert "this node was revoked" in world.log_text("node-2")

    # A node that is told to stop leaves nothing.
    web_process.send_signal(signal.SIGTERM)
    assert web_process.wait(PATIENCE) == 0
    assert not os.path.exists(os.path.join(world.state(1), "node.sock"))
    left = world.spaces[1].run("ss", "-Hltnu").stdout
    assert "127.64.0.1:8080" in left and left.count("\n") == 1, left


def test_udp_reaches_services_with_and_without_a_device(machines):
    world = machines(3, device=[3])
    _, web = world.join(1, world.token("--tags", "web"))
    shop = world.token("--tags", "shop", "--reuse")
    _, without = world.join(2, shop, "--mode", "userspace")
    _, device = world.join(3, shop)
    for number, address in (1, web), (2, without), (3, device):
        name = f"greeter-{number}"
        world.start(number, name, "python3", "-u", "-c", UDP_GREETER, f"node-{number}", address, "5300")

    def ask(number, address, port=5300, length=10):
        done = world.spaces[number].run("python3", "-c", UDP_CALLER, address, str(port), str(length), check=False)
        return done.stdout.strip()

    rule = '[[allow]]\nfrom = ["tag:web", "tag:shop"]\nto = ["tag:shop", "service:alone"]\nports = ["udp/5300"]\n'
    world.set_policy(rule + '[services.alone]\nnodes = ["node:node-2"]\nports = ["udp/5300"]\n')
    # To a machine without a device from one without and from one with, and the other way round; short and long.
    for number, host, greeted in (1, without, 2), (1, "127.64.0.3", 3), (3, without, 2), (2, "127.64.0.3", 3):
        for length in 10, 30000:
            answer = f"node-{greeted} greets 127.64.0.{number} {length}"
            wait_until(lambda: ask(number, host, length=length) == answer, PATIENCE, f"{number} is answered: {answer}")
    # By a service's own address, also from a device to a machine without one.
    for number, address in (1, "127.127.0.1"), (3, "100.127.0.1"):
        answer = f"node-2 greets 127.64.0.{number} 10"
        wait_until(lambda: ask(number, address) == answer, PATIENCE, f"{number} is answered: {answer}")
    wanted = {"protocol": "udp", "began": "here", "peer": "node-2", "destination_port": 5300, "rule_line": 1}
    assert any(flow["sent"] == 30000 and flow["received"] > 20 for flow in world.flows(1, **wanted))
    assert "127.64.0.2:5300" in world.status(1)["udp_doors"]

    # What no rule allows: the other direction, another port, and all of it when the rule is taken back.
    assert ask(2, web) == ask(3, "127.64.0.1") == ask(1, without, port=5301) == ""
    world.set_policy("")
    wait_until(lambda: not world.status(1).get("udp_doors"), PATIENCE, "doors close")
    assert ask(1, without) == ask(3, without) == ""


def test_etcd_forms_a_cluster_by_names_without_rights_and_outlives_a_node(machines):
    world = machines(3)
    world.set_policy(ETCD_POLICY)
    token = world.token("--tags", "etcd", "--reuse")
    nodes, addresses = {}, {}
    for number in 1, 2, 3:
        nodes[number], addresses[number] = world.join(number, token)

    def all_doors():
        return all(len(world.status(number)["doors"]) == 4 for number in nodes)

    wait_until(all_doors, PATIENCE, "two doors to each of the others, at each")
    cluster = ",".join(f"node-{number}=http://node-{number}.mesh.internal:2380" for number in nodes)
    members = []
    for number, address in addresses.items():
        name = f"node-{number}"
        words = ["etcd", "--name", name, "--data-dir", os.path.join(world.home(number), "etcd")]
        # So that a busy machine does not elect without end.
        words += ["--heartbeat-interval", "300", "--election-timeout", "3000", "--log-level", "error", "--logger", "zap"]
        for kind, port in ("peer", 2380), ("client", 2379):
            advertise = "--initial-advertise-peer-urls" if kind == "peer" else "--advertise-client-urls"
            words += [f"--listen-{kind}-urls", f"http://{address}:{port}"]
            words += [advertise, f"http://{name}.mesh.internal:{port}"]
        members.append(world.run_in_background(number, f"etcd-{number}", *words, "--initial-cluster", cluster))


    def etcdctl(number, to, *words):
        ask = ["etcdctl", f"--endpoints=http://node-{to}.mesh.internal:2379", "--command-timeout=20s", *words]

        def asked():
            done = world.spaces[number].run(*ask, check=False, env={"ETCDCTL_API": "3"})
            return done.stdout.split() if done.returncode == 0 else None

        return wait_until(asked, 2 * PATIENCE, f"etcd at node {to} answers node {number}: {words}")

    # Each machine reaches each member by its name.
    for number in nodes:
        for to in nodes:
            assert etcdctl(number, to, "put", f"from-{number}-to-{to}", "kept") == ["OK"]
    # One node is cut off, and the coordinator with it: the others go on, and it comes back from what it knew.
    kill(world.coordinator)
    kill(nodes[3])
    assert etcdctl(1, 2, "put", "while-away", "kept") == ["OK"]
    nodes[3], again = world.join(3, None)
    assert again == addresses[3]
    assert etcdctl(2, 3, "get", "while-away", "--print-value-only") == ["kept"]
    assert len(etcdctl(3, 1, "get", "--prefix", "", "--keys-only")) == 10
    # Members that are told to end wait for each other.
    for member in members:
        kill(member)
