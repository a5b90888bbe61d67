"""A coordinator and three nodes, each in a network namespace of its own, on one network."""

import json
import os
import select
import signal
import time

from mesh_world import COORDINATOR, COUNTER, PATIENCE, Flow, kill

from harness.atoll import BINARY, wait_until

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

def test_nodes_reach_each_other_by_name_and_nothing_else_does(world):
    once = world.token("--tags", "web")
    web_process, web = world.node(1, once)
    many = world.token("--tags", "shop", "--reuse")
    shop_process, shop = world.node(2, many)
    world.start(2, "counter", "python3", "-u", "-c", COUNTER, "8080")
    world.start(2, "counter", "python3", "-u", "-c", COUNTER, "8081")
    third, other = world.node(3, many)

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

    # Both ends know of the flow and of the rule that let it; what begins is told.
    rule = POLICY.splitlines().index("[[allow]]") + 1
    for number, began, name in (1, "here", "node-2"), (2, "there", "node-1"):
        wanted = {"protocol": "tcp", "began": began, "peer": name, "destination": shop, "destination_port": 8080}
        flows = world.flows(number, **wanted, source=web, rule_line=rule, way="tunnel")
        both = [flow for flow in flows if flow["sent"] >= 40 and flow["received"] >= 40]
        assert any(flow["source_port"] and flow["round_trip_us"] for flow in both), flows
    following = world.run_in_background(1, "flows", BINARY, "mesh", "flows", "--follow", "--state", world.state(1))

    def heard():
        return world.knocks(1, shop, 8080) and select.select([following.stdout], [], [], 2)[0]

    wait_until(heard, PATIENCE, "a flow is told")
    event = json.loads(following.stdout.readline())
    assert (event["event"], event["peer"], event["rule_line"]) == ("began", "node-2", rule), event
    kill(following)
    metrics = world.here(1, "status", "--metrics").stdout.splitlines()
    begun = next(line for line in metrics if line.startswith('atoll_mesh_flows_begun_total{way="tunnel"} '))
    assert int(begun.split()[1]) >= 2 and 'atoll_mesh_peers{allowed="true"} 2' in metrics, metrics

    # What no rule allows does not pass: another port, the other direction, two of the same kind.
    for number, address, port in (1, shop, 8081), (2, web, 8080), (3, shop, 8080):
        assert not world.knocks(number, address, port, TRY)
    assert world.status(1)["denied_outbound"] > 0 and world.status(2)["denied_outbound"] > 0
    assert world.peer(3, "node-2")["allowed"] is False

    # Who is back says so itself: those who knew it would go on for 15 s with a session that it has lost.
    kill(third)
    wait_until(lambda: world.sees_nothing_of_the_mesh(3), PATIENCE, "the device of node 3 is gone")
    third, _ = world.node(3)
    wait_until(lambda: world.peer(3, "node-1")["handshake_seconds"] is not None, 10, "node 3 has said that it is back")

    # The service has an address of its own, and a name for its nodes that leads to those that are ready.
    both = sorted([shop, other])
    assert world.look_up(1, web, "shop.mesh.internal") == ["100.127.0.1"]
    assert sorted(world.look_up(1, web, "all.shop.mesh.internal")) == both
    words = [BINARY, "mesh", "serve", "shop", "--port", "8080", "--state", world.state(3)]
    serving, line = world.start(3, "serve", *words)
    assert line == "not ready\n"
    wait_until(lambda: world.look_up(1, web, "all.shop.mesh.internal") == [shop], PATIENCE, "node 3 is left out")
    world.start(3, "counter", "python3", "-u", "-c", COUNTER, "8080")
    assert serving.stdout.readline() == b"ready\n"
    wait_until(lambda: sorted(world.look_up(1, web, "all.shop.mesh.internal")) == both, PATIENCE, "node 3 is back")
    assert world.knocks(1, "100.127.0.1", 8080)

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
