"""A node's tunnels get another key while a connection goes on."""

import os

from mesh_world import COUNTER, PATIENCE, Flow, kill

from harness.atoll import wait_until

POLICY = """
[[allow]]
from = ["tag:web"]
to = ["tag:web"]
ports = ["tcp/8080"]
"""


def test_a_key_is_exchanged_while_a_connection_goes_on_and_a_node_is_killed(world):
    token = world.token("--tags", "web", "--reuse")
    nodes = {number: world.node(number, token) for number in (1, 2)}
    policy = os.path.join(world.folder, "policy.toml")
    with open(policy, "w") as file:
        file.write(POLICY)
    world.atoll("policy", "set", policy)
    world.start(2, "counter", "python3", "-u", "-c", COUNTER, "8080")
    address = nodes[2][1]
    wait_until(lambda: world.knocks(1, address, 8080), PATIENCE, "node 1 reaches node 2")
    flow = Flow(world, 1, address)
    flow.goes_on("at all")
    before = world.status(2)["rotation"]
    assert (before["phase"], before["unable"]) == ("settled", []), before

    # Killed once the next key is said: it goes on with what is on its disk.
    world.here(2, "rotate")
    assert world.status(2)["rotation"]["phase"] == "announced"
    assert world.here(2, "rotate", check=False).returncode == 1
    flow.goes_on("while the key is announced")
    kill(nodes[2][0])
    assert world.node(2)[1] == address
    flow.goes_on("after the node was killed")

    def exchanged():
        now = world.status(2)["rotation"]
        return now["phase"] == "exchanged" and now["key"] != before["key"]

    wait_until(exchanged, PATIENCE, "the key is exchanged")
    flow.goes_on("with the new key")
    # One that starts anew finds it by the new key.
    kill(nodes[1][0])
    world.node(1)
    assert world.knocks(1, address, 8080)
