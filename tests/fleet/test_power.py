"""Machines are switched through real peers: a Redfish emulator, an IPMI controller, packets on the wire."""

import json
import os
import socket
import subprocess
import threading


import pytest

from harness.atoll import BINARY, wait_until

from fleet.peers import PASSWORD, FakeBmc, Node, Sushy, free_port

MAC = "02:00:5e:10:20:30"


def toml(value):
    """A value as TOML writes it, tables inline."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {toml(inner)}" for name, inner in value.items()) + " }"
    return json.dumps(value)


class Fleet:
    """The program with a configuration of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.config = os.path.join(folder, "fleet.toml")
        self.environment = {**os.environ, "BMC_PASSWORD": PASSWORD, "ATOLL_DATA_DIR": os.path.join(folder, "data")}

    def write(self, machines, head=""):
        group = {"name": "rack", "min": 1, "capacity": {"cpu": 1, "memory": "1GiB"}, "boot": "10s", "shutdown": "10s"}
        group["watts"] = {"off": 1, "idle": 100, "peak": 200}
        lines = [head, "[[groups]]"] + [f"{name} = {toml(value)}" for name, value in group.items()]
        for machine in machines:
            lines += ["[[machines]]", 'group = "rack"'] + [f"{name} = {toml(value)}" for name, value in machine.items()]
        with open(self.config, "w") as file:
            file.write("\n".join(lines) + "\n")

    def run(self, *arguments, status=0):
        done = subprocess.run(
            [BINARY, "fleet", *arguments], env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == status, done.stdout + done.stderr
        assert PASSWORD not in done.stdout + done.stderr
        return done

    def power(self, machine, action, status=0):
        done = self.run("power", machine, action, "--config", self.config, "--json", status=status)
        return json.loads(done.stdout)


@pytest.fixture
def fleet(tmp_path):
    return Fleet(str(tmp_path))


def machine(name, node, power, idle=("true",)):
    looked_at = {"address": node.address} | ({"idle": list(idle)} if idle else {})
    return {"name": name, "node": looked_at, "power": power}


def test_redfish(fleet, tmp_path):
    with Sushy(str(tmp_path), 4, on=["m1"]) as sushy:
        unpinned = sushy.power("m3")
        del unpinned["certificate_sha256"]
        machines = [
            machine("m0", sushy.nodes["m0"], sushy.power("m0")),
            # Nobody can tell whether it carries work.
            machine("m1", sushy.nodes["m1"], sushy.power("m1"), idle=None),
            machine("m2", sushy.nodes["m2"], sushy.power("m2", certificate_sha256="00" * 32)),
            machine("m3", sushy.nodes["m3"], unpinned),
        ]
        fleet.write(machines)
        says = lambda name: fleet.power(name, "status")["controllers"][0]["says"]
        wait_until(lambda: says("m0") == "off", 20, "the emulator answers")
        fleet.power("m0", "on")
        assert sushy.nodes["m0"].is_up and says("m0") == "on"
        fleet.power("m0", "off")
        assert not sushy.nodes["m0"].is_up and says("m0") == "off"
        assert (sushy.nodes["m0"].ups, sushy.nodes["m0"].downs) == (1, 1)
        fleet.power("m1", "off", status=1)
        assert sushy.nodes["m1"].is_up and says("m1") == "on"
        # Another certificate than the one that is expected: it is told nothing.
        assert "certificate is not the one that is configured" in says("m2")
        assert "certificate_sha256" in says("m3")
        fleet.environment["BMC_PASSWORD"] = "wrong"
        assert "does not accept user and password" in says("m0")


def test_ipmi(fleet):
    with FakeBmc() as controller:
        power = {
            "driver": "ipmi",
            "address": "127.0.0.1",
            "port": controller.port,
            "user": "admin",
            "password": {"env": "BMC_PASSWORD"},
        }
        fleet.environment["BMC_PASSWORD"] = "password"
        fleet.write([machine("m0", controller.node, power)])
        fleet.power("m0", "on")
        assert controller.node.is_up and controller.said == ["powered on"]
        fleet.power("m0", "off")
        assert not controller.node.is_up
        assert controller.said == ["powered on", "politely shut down the system"]
        # The real ipmitool agrees.
        command = ["ipmitool", "-I", "lanplus", "-C", "3", "-H", "127.0.0.1", "-p", str(controller.port)]
        command += ["-U", "admin", "-P", "password", "power", "status"]
        assert "off" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_wake_on_lan(fleet, tmp_path):
    node = Node()
    card = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    card.bind(("127.0.0.1", 0))
    packets = []

    def listen():
        while packet := card.recv(200):
            packets.append(packet)
            if packet == b"\xff" * 6 + bytes.fromhex(MAC.replace(":", "")) * 16:
                node.up()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    # What a shutdown over SSH would do.
    stopped = tmp_path / "stopped"
    power = {
        "driver": "wake-on-lan",
        "mac": MAC,
        "broadcast": f"127.0.0.1:{card.getsockname()[1]}",
        "off": ["touch", str(stopped)],
    }
    fleet.write([machine("m0", node, power)])
    fleet.power("m0", "on")
    assert node.is_up and set(map(len, packets)) == {102}

    # Silence alone has to last before it counts as off: the end is not waited for.
    command = [BINARY, "fleet", "power", "m0", "off", "--config", fleet.config]
    switching = subprocess.Popen(command, env=fleet.environment)
    try:
        wait_until(stopped.exists, 60, "the machine is told to stop")
    finally:
        switching.kill()
        switching.wait()
    node.down()
    # Who was killed with the right to act keeps nobody from it for longer than a lease.
    fleet.power("m0", "on")
    assert node.is_up
    node.down()
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", card.getsockname())
    thread.join()


def test_fifty_machines_wake_for_work_and_sleep_after_it(fleet, tmp_path):
    """The whole loop against the emulator: requests wake machines, what is idle sleeps, and nothing
    that carries work is ever switched off."""
    count, kept = 50, 10
    demand = tmp_path / "demand"
    demand.write_text("".join(f"w{number},1000,512,,never\n" for number in range(count)))
    with Sushy(str(tmp_path), count) as sushy:
        head = f'wakes_per_second = 20\n[policy]\ndebounce = "1s"\n[demand]\nsource = "file"\npath = "{demand}"'
        fleet.write([machine(name, sushy.nodes[name], sushy.power(name)) for name in sushy.names], head)
        listen = f"127.0.0.1:{free_port()}"
        log = open(tmp_path / "serve.log", "wb")
        serving = subprocess.Popen(
            [BINARY, "fleet", "serve", "--config", fleet.config, "--listen", listen],
            env=fleet.environment,
            stdout=log,
            stderr=log,
        )
        try:
            up = lambda: [name for name in sushy.names if sushy.nodes[name].is_up]
            wait_until(lambda: len(up()) == count, 120, "all are up")
            # Ten workloads found their machines and stay; the others are done.
            text = "".join(f"w{number},1000,512,m{number},never\n" for number in range(kept))
            (tmp_path / "next").write_text(text)
            os.replace(tmp_path / "next", demand)
            busy = {f"m{number}" for number in range(kept)}
            wait_until(lambda: len(up()) <= kept, 180, "what is idle sleeps")
            assert set(up()) == busy
            assert all(sushy.nodes[name].downs == 0 for name in busy)
            assert all(sushy.nodes[name].ups == 1 for name in sushy.names), "none was woken twice"
            told = json.loads(fleet.run("explain", "m0", "--url", f"http://{listen}", "--json").stdout)
            assert "w0" in json.dumps(told)
        finally:
            serving.terminate()
            assert serving.wait(30) == 0
    assert PASSWORD not in (tmp_path / "serve.log").read_text()
