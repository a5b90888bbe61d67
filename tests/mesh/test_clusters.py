"""Two clusters with the very same addresses behind two nodes, reached by a third."""

import json
import os
import re
import shutil
import subprocess

import pytest
from mesh_world import COUNTER, PATIENCE, Flow, Space, World

from harness.atoll import WORK, wait_until

POD = "10.42.3.4"
# How long something that is denied is tried.
TRY = 0.5

POLICY = """
[clusters.paris]
nodes = ["tag:paris-gw"]
ranges = ["10.42.0.0/16"]

[clusters.lyon]
nodes = ["tag:lyon-gw"]
ranges = ["10.42.0.0/16"]

[[allow]]
from = ["tag:web"]
to = ["cluster:paris", "cluster:lyon"]
ports = ["tcp/8080"]

[[allow]]
from = ["tag:lyon-gw"]
to = ["cluster:paris"]
ports = ["tcp/8080"]

[[allow]]
from = ["cluster:paris"]
to = ["tag:web"]
ports = ["tcp/8080"]
"""


@pytest.fixture
def world():
    folder = os.path.join(WORK, f"mesh-{os.getpid()}")
    os.makedirs(folder)
    made = World(folder)
    pods = []

    def pod(number):
        """A machine behind a node, in a network of 10.42.0.0/16."""
        space, node = Space(f"atoll-mesh-{os.getpid()}-pod-{number}"), made.spaces[number]
        pods.append(space)
        node.run("ip", "link", "add", "pods", "type", "veth", "peer", "name", "eth0", "netns", space.name)
        for where, device, address in (node, "pods", "10.42.0.1"), (space, "eth0", POD):
            where.run("ip", "address", "add", f"{address}/16", "dev", device)
            where.run("ip", "link", "set", device, "up")
        log = made.log(f"pod-{number}")
        process, _ = space.start(log, "python3", "-u", "-c", COUNTER, "8080")
        made.processes.append(process)
        return space

    made.pod = pod
    yield made
    made.end()
    for space in pods:
        subprocess.run(["ip", "netns", "delete", space.name], check=False)
    shutil.rmtree(folder, ignore_errors=True)


def cluster(world, number, name):
    clusters = world.status(number).get("clusters", [])
    return next((known for known in clusters if known["name"] == name), None)


def test_clusters_with_the_same_addresses_are_reached_and_nothing_is_taken_from_machines(world):
    pods = {2: world.pod(2), 3: world.pod(3)}
    # Paris knows the way back. In Lyon nobody does, and the gateway stands for the mesh, as the guide says.
    pods[2].run("ip", "route", "add", "default", "via", "10.42.0.1")
    with open(os.path.join(os.path.dirname(__file__), "..", "..", "docs", "mesh.md")) as guide:
        rules = re.findall(r"^nft add .*$", guide.read(), re.M)
    assert len(rules) == 3, rules
    for rule in rules:
        world.spaces[3].run("sh", "-c", rule)
    tags = {1: "web", 2: "paris-gw", 3: "lyon-gw"}
    addresses = {number: world.node(number, world.token("--tags", tag))[1] for number, tag in tags.items()}

    # Two that cannot be told apart are refused, and what is offered holds.
    policy = os.path.join(world.folder, "policy.toml")
    with open(policy, "w") as file:
        file.write(POLICY)
    for words in ["policy", "test"], ["policy", "set"], ["check"]:
        refused = world.atoll(*words, policy, check=False)
        assert refused.returncode == 1, refused
    refused = world.atoll("policy", "test", policy, check=False).stderr
    assert f"{policy}:6: 10.42.0.0/16 of cluster \"lyon\" overlaps with 10.42.0.0/16 of cluster \"paris\"" in refused
    offer = re.search(r"write (as = \[\"(10\.\d+)\.0\.0/16\"\])", refused)
    with open(policy, "w") as file:
        file.write(POLICY.replace("[clusters.lyon]", f"[clusters.lyon]\n{offer[1]}"))
    assert world.atoll("check", policy).returncode == 0
    world.atoll("policy", "set", policy)
    seen = {2: POD, 3: f"{offer[2]}.3.4"}

    # A gateway that does not forward says so.
    def forwarding(number, name):
        return [trouble for trouble in cluster(world, number, name)["troubles"] if "ip_forward" in trouble]

    wait_until(lambda: cluster(world, 3, "lyon"), PATIENCE, "the policy is known")
    wait_until(lambda: cluster(world, 2, "paris"), PATIENCE, "the policy is known")
    for number, name in (2, "paris"), (3, "lyon"):
        space = world.spaces[number]
        space.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
        assert forwarding(number, name)
        space.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        assert not forwarding(number, name)

    # Both are reached, and only as the rule says.
    for number, address in seen.items():
        wait_until(lambda: world.hears(1, address, 8080), PATIENCE, f"the cluster behind node {number} is reached")
        flow = Flow(world, 1, address)
        flow.goes_on("into the cluster")
        assert not world.knocks(1, address, 8081, TRY)
    shown = {name: cluster(world, 1, name) for name in ("paris", "lyon")}
    assert (shown["paris"]["by"], shown["lyon"]["by"]) == ("node-2", "node-3"), shown
    assert json.loads(world.here(1, "check", "--json").stdout)["overlaps"] == []

    # From a cluster, as rules say.
    world.start(1, "counter", "python3", "-u", "-c", COUNTER, "8080")
    words = "import socket, sys; socket.create_connection((sys.argv[1], 8080), timeout=float(sys.argv[2])).close()"
    calls = [("python3", "-c", words, addresses[1], patience) for patience in ("20", "1")]
    assert pods[2].run(*calls[0], check=False).returncode == 0
    assert pods[3].run(*calls[1], check=False).returncode != 0

    # What a machine routes by itself stays its own, and it says that it does not reach the cluster.
    troubles = cluster(world, 3, "paris")["troubles"]
    assert any("routes 10.42.0.0/16 through pods by itself" in trouble for trouble in troubles), troubles
    routes = world.spaces[3].run("ip", "route").stdout.splitlines()
    assert [route for route in routes if route.startswith("10.42.")] == [next(r for r in routes if "dev pods" in r)]
    checked = world.here(3, "check", check=False)
    assert checked.returncode == 1 and "through pods by itself" in checked.stderr, checked

    # The picture shows it.
    picture = world.here(1, "map").stdout
    assert picture.startswith("<svg ") and "leads to paris" in picture and "by node-3" in picture

    # With the policy its routes go; another gateway's end is that of its device.
    assert " dev atoll" in world.spaces[1].run("ip", "route", "get", POD).stdout
    with open(policy, "w") as file:
        file.write("")
    world.atoll("policy", "set", policy)
    wait_until(lambda: not re.search(r"^10\.\S+ dev atoll", world.spaces[1].run("ip", "route").stdout, re.M), PATIENCE, "no route is left")
    assert not world.knocks(1, POD, 8080, TRY)
