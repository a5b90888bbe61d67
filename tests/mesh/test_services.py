"""A service at an address of its own: requests go on when a server, a node and the coordinator die."""

import json
import os

from mesh_world import PATIENCE, kill

from harness.atoll import wait_until

POLICY = """
[services.shop]
nodes = ["tag:shop"]
ports = ["tcp/8080"]

[[allow]]
from = ["tag:web"]
to = ["service:shop"]
"""
SERVICE = "100.127.0.1"

# Says who it is to everybody; NAME and PORT as arguments. At all addresses, as many programs listen.
SERVER = """
import socketserver, sys
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        try:
            self.request.sendall(sys.argv[1].encode())
        except OSError:
            pass
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address, daemon_threads = True, True
print("listening", flush=True)
Server(("0.0.0.0", int(sys.argv[2])), Handler).serve_forever()
"""

# Asks ADDRESS PORT so many times, and prints who answered and after how many milliseconds; nobody if the connection ends without a word.
ASK = """
import socket, sys, time
for _ in range(int(sys.argv[3])):
    begun, said = time.monotonic(), b""
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20) as connection:
            said = connection.recv(100)
    except OSError:
        pass
    print(said.decode() or "nobody", int(1000 * (time.monotonic() - begun)))
"""


def test_requests_go_on_when_a_server_a_node_and_the_coordinator_die(world):
    _, web = world.node(1, world.token("--tags", "web"))
    shop = world.token("--tags", "shop", "--reuse")
    nodes, addresses, servers = {}, {}, {}
    for number in 2, 3:
        nodes[number], addresses[number] = world.node(number, shop)
    policy = os.path.join(world.folder, "policy.toml")
    with open(policy, "w") as file:
        file.write(POLICY)
    world.atoll("policy", "set", policy)

    def serve(number):
        words = ["python3", "-u", "-c", SERVER, f"node-{number}", "8080"]
        servers[number], _ = world.start(number, f"server-{number}", *words)

    def ask(times=1):
        done = world.spaces[1].run("python3", "-c", ASK, SERVICE, "8080", str(times))
        answers = [line.split() for line in done.stdout.splitlines()]
        print(answers)
        assert len(answers) == times
        return {who for who, _ in answers}

    def endpoints():
        (service,) = json.loads(world.here(1, "services", "--json").stdout)
        (port,) = service["ports"]
        assert (service["name"], service["address"], port["protocol"], port["port"]) == ("shop", SERVICE, "tcp", 8080)
        return {endpoint["node"]: endpoint["health"] for endpoint in port["endpoints"]}

    def becomes(node, health, answers):
        """Asks until the endpoint looks so. Every request is answered."""

        def seen():
            assert ask(3) <= answers
            return endpoints().get(node) == health

        wait_until(seen, PATIENCE, f"{node} is {health}")

    both = {"node-2", "node-3"}
    for number in 2, 3:
        serve(number)
    wait_until(lambda: set(endpoints()) == both, PATIENCE, "node 1 may use both")
    wait_until(lambda: ask() <= both, PATIENCE, "somebody answers")
    for node in both:
        becomes(node, "well", both)

    # One address everywhere, and names for it and for the nodes.
    assert world.look_up(1, web, "shop.mesh.internal") == [SERVICE]
    assert sorted(world.look_up(1, web, "all.shop.mesh.internal")) == sorted(addresses.values())
    assert world.look_up(1, web, f"-x{SERVICE}") == ["shop.mesh.internal."]
    assert len(world.spaces[1].run("dig", "+short", f"@{web}", "_shop._tcp.mesh.internal", "SRV").stdout.splitlines()) == 2
    # Whom policy does not let use it has no door, and is told the nodes.
    assert sorted(world.look_up(2, addresses[2], "shop.mesh.internal")) == sorted(addresses.values())

    # From here on nobody tells node 1 anything.
    kill(world.coordinator)
    kill(servers[2])
    becomes("node-2", "ejected", {"node-3"})
    text = world.here(1, "services").stdout
    assert "put aside" in text and "nobody listens there" in text, text
    assert ask(5) == {"node-3"}
    serve(2)
    becomes("node-2", "well", both)
    kill(nodes[3])
    becomes("node-3", "ejected", {"node-2"})
    assert ask(5) == {"node-2"}
