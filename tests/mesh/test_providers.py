"""Nodes with providers behind NATs of different kinds, and relays."""

import shutil
import signal
import tempfile

import pytest
from mesh_world import COUNTER, PATIENCE, Flow, kill
from providers_world import CONE, SYMMETRIC, Providers

from harness.atoll import BINARY, WORK, wait_until

POLICY = """
relays = ["tag:relay"]

[services.shop]
nodes = ["tag:shop"]
ports = ["tcp/8080"]

[[allow]]
from = ["tag:shop"]
to = ["service:shop"]
"""


@pytest.fixture
def providers():
    # Below /tmp, where everybody may enter.
    folder = tempfile.mkdtemp(prefix="atoll-mesh-")
    data = tempfile.mkdtemp(prefix="mesh-", dir=WORK)
    made = []

    def make(kinds, **options):
        made.append(Providers(folder, kinds, data=data, **options))
        return made[0]

    yield make
    for world in made:
        world.end()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(data, ignore_errors=True)


def flow_between(world, one, two, address):
    def reached():
        return world.hears(one, address, 8080)

    wait_until(reached, PATIENCE, f"node {one} reaches node {two}")
    flow = Flow(world, one, address)
    flow.goes_on(f"from node {one} to node {two}")
    return flow


@pytest.mark.parametrize("mode", ["tun", "userspace"])
def test_direct_where_nats_allow_and_relayed_where_not(providers, mode):
    world = providers([(mode, CONE), (mode, CONE), (mode, SYMMETRIC), (mode, SYMMETRIC)], relays=2)
    world.set_policy(POLICY)
    relays = [world.start_relay(which, world.token("--tags", "relay")) for which in range(2)]
    token = world.token("--tags", "shop", "--reuse")
    nodes, addresses = {}, {}
    for number in 1, 2, 3, 4:
        nodes[number], addresses[number] = world.join(number, token)
        listen = "0.0.0.0" if mode == "tun" else addresses[number]
        counter = COUNTER.replace("0.0.0.0", listen)
        world.start(number, f"counter-{number}", "python3", "-u", "-c", counter, "8080")
    world.wait_for_relays(*nodes)

    # Two whose NATs keep one port get through to each other; two that don't speak over a relay.
    straight = flow_between(world, 1, 2, addresses[2])
    relayed = flow_between(world, 3, 4, addresses[4])
    wait_until(lambda: (world.over(1, "node-2") or "").startswith("203.0.2.2:"), PATIENCE, "a direct way")
    assert world.over(3, "node-4").startswith("relay relay-")
    straight.goes_on("when it goes directly")

    # The relay that carries dies: the other takes its place, and the flow goes on.
    which = int(world.over(3, "node-4")[-1])
    kill(relays[which])
    other = f"relay relay-{1 - which}"
    wait_until(lambda: (world.over(3, "node-4"), world.over(4, "node-3")) == (other, other), PATIENCE, "the other relay carries")
    relayed.goes_on("over the other relay")
    relays[which] = world.start_relay(which)
    world.wait_for_relays(*nodes)

    # The coordinator dies: flows go on, new ones begin, and a node that starts anew is back.
    kill(world.coordinator)
    straight.goes_on("without the coordinator")
    again = flow_between(world, 2, 3, addresses[3])
    kill(nodes[4])
    nodes[4], address = world.join(4, None)
    assert address == addresses[4]
    world.wait_for_relays(4)
    back = flow_between(world, 1, 4, addresses[4])
    world.coordinator = world.start_coordinator()

    # A provider gives its customer another address: flows go on.
    world.gateways[1].run("ip", "address", "delete", "203.0.1.2/24", "dev", "wan")
    world.gateways[1].run("ip", "address", "add", "203.0.1.77/24", "dev", "wan")
    world.gateways[1].run("ip", "route", "replace", "default", "via", "203.0.1.1")
    straight.goes_on("from another address")
    wait_until(lambda: (world.over(2, "node-1") or "").startswith("203.0.1.77:"), PATIENCE, "the new address is used")

    # A provider that lets nothing pass any more but TCP to port 443.
    world.only_tls(2)
    wait_until(lambda: (world.over(1, "node-2") or "").startswith("relay relay-"), PATIENCE, "a relay carries")

    def only_over_tls():
        return all(relay["tls"] and not relay["udp"] for relay in world.status(2)["relays"])

    wait_until(only_over_tls, PATIENCE, "the relays are reached over TLS")
    straight.goes_on("over TLS")
    for flow in again, back:
        flow.goes_on("until the end")

    # No port of the nodes' services is reachable from the internet.
    assert not world.knocks(0, "203.0.2.2", 8080, 1)
    words = [BINARY, "mesh", "status", "--state", world.state(world.relay_number(0))]
    shown = world.spaces[world.relay_number(0)].run(*words).stdout
    assert "clients" in shown and "NOT USED" not in shown
    nodes[1].send_signal(signal.SIGTERM)
    assert nodes[1].wait(PATIENCE) == 0


def test_a_node_that_policy_does_not_name_is_no_relay(providers):
    world = providers([("userspace", SYMMETRIC), ("userspace", SYMMETRIC)])
    world.set_policy(POLICY.replace("tag:relay", "tag:other"))
    world.start_relay(0, world.token("--tags", "relay"))
    token = world.token("--tags", "shop", "--reuse")
    _, one = world.join(1, token)
    world.join(2, token)
    world.start(1, "counter", "python3", "-u", "-c", COUNTER.replace("0.0.0.0", one), "8080")
    wait_until(lambda: world.peer(2, "relay-0"), PATIENCE, "the relay is known")
    assert world.status(2)["relays"] == []
    assert not world.hears(2, one, 8080, 3)
    words = [BINARY, "mesh", "status", "--state", world.state(world.relay_number(0))]
    assert "NOT USED" in world.spaces[world.relay_number(0)].run(*words).stdout
    # Once it is, it carries.
    world.set_policy(POLICY)
    wait_until(lambda: world.hears(2, one, 8080), PATIENCE, "the relay carries")
    assert world.over(2, "node-1") == "relay relay-0"
    # Who is put out of the mesh is put out of the relay.
    world.atoll("revoke", "node-1")
    relay = world.relay_number(0)
    wait_until(lambda: world.status(relay)["relaying"]["clients"] == 1, PATIENCE, "the relay has forgotten the node")
