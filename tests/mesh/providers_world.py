"""An internet of namespaces: a router, the coordinator and relays with public addresses, and providers, each behind the NAT that it is said to have."""

import os
import subprocess

from mesh_world import PATIENCE, Space, World
from test_userspace import NOBODY, NO_RIGHTS, VIEW

from harness.atoll import BINARY, wait_until

# What a provider does with what its machine sends: one port for all destinations, or another one for each.
CONE, SYMMETRIC = "", "random"
# Makes a network namespace that belongs to a user namespace, says so, and stays until its input ends.
OWNED = 'ip link set lo up && sysctl -q -w net.ipv4.ip_unprivileged_port_start=0 && echo made && exec cat'
# A machine's own view of names, and of the program wherever it was built.
NAMES = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'


class Owned(Space):
    """A network namespace that belongs to a user namespace, whose root may have a device there and nothing elsewhere."""

    def __init__(self, name):
        self.name = name
        words = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", OWNED]
        self.holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.holder.stdout.readline() == b"made\n"
        with open(f"/run/netns/{name}", "w"):
            pass
        subprocess.run(["mount", "--bind", f"/proc/{self.holder.pid}/ns/net", f"/run/netns/{name}"], check=True)

    def words(self, *words):
        return ["nsenter", f"--target={self.holder.pid}", "--user", "--net", "--preserve-credentials", *words]

    def end(self):
        self.holder.stdin.close()
        self.holder.wait(PATIENCE)


class Providers(World):
    """Machines with providers, numbered from 1; `kinds` are pairs of a mode and a NAT. Relays are at providers of their own.

    Modes: `tun` is root with a device, `userns` is root of a user namespace with a device, `userspace` is nobody with nothing.
    """

    def __init__(self, folder, kinds, relays=1, name="", data=None):
        self.kinds, self.relays, self.label = kinds, relays, name
        self.url = "http://203.0.100.2:443"
        os.chmod(folder, 0o755)
        super().__init__(folder, len(kinds), data)
        for number, (mode, _) in enumerate(kinds, 1):
            os.makedirs(self.home(number), exist_ok=True)
            for file in "atoll", "resolv.conf":
                with open(os.path.join(self.home(number), file), "w"):
                    pass
            os.makedirs(self.state(number), mode=0o700)
            if mode == "userspace":
                os.chown(self.home(number), NOBODY, NOBODY)
                os.chown(self.state(number), NOBODY, NOBODY)
            space = self.spaces[number]
            space.plain = space.words
            space.words = self.entrance(number, mode, space.plain)

    def entrance(self, number, mode, enter):
        names = os.path.join(self.home(number), "resolv.conf")
        private = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]

        def words(*words):
            if words[0] in ("python3", "ip", "nft", "ss"):
                return enter(*words)
            if mode != "userspace":
                return enter(*private, NAMES, names, *words)
            program = os.path.join(self.home(number), "atoll") if words[0] == BINARY else words[0]
            view = [*private, VIEW, "sh", self.home(number), BINARY]
            return enter(*view, *NO_RIGHTS, program, *words[1:])

        return words

    def wire(self, nodes):
        base = f"atoll-mesh-{os.getpid()}{self.label}"
        self.router = Space(f"{base}-internet")
        self.router.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        self.gateways = {}
        self.spaces.append(self.public(Space(f"{base}-coordinator"), 100))
        for number, (mode, nat) in enumerate(self.kinds, 1):
            gateway = self.public(Space(f"{base}-gateway-{number}"), number)
            self.gateways[number] = gateway
            machine = (Owned if mode == "userns" else Space)(f"{base}-{number}")
            self.cable(gateway, "lan", f"10.0.{number}.1", machine, "eth0", f"10.0.{number}.2")
            gateway.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
            # As container runtimes set it: everybody may listen at port 53.
            if mode == "userspace":
                machine.run("sysctl", "-q", "-w", "net.ipv4.ip_unprivileged_port_start=0")
            gateway.run(
                "nft",
                f"""table ip nat {{ chain post {{ type nat hook postrouting priority 100; oifname wan masquerade {nat}; }}; }};
                table ip wall {{
                    chain in {{ type filter hook input priority 0; iifname wan ct state new drop; }}
                    chain pass {{ type filter hook forward priority 0; iifname wan ct state new drop; }}
                }}""",
            )
            self.spaces.append(machine)
        for number in range(self.relays):
            self.spaces.append(self.public(Space(f"{base}-relay-{number}"), 101 + number))

    def cable(self, near, near_name, near_address, far, far_name, far_address):
        near.run("ip", "link", "add", near_name, "type", "veth", "peer", "name", far_name, "netns", far.name)
        near.run("ip", "address", "add", f"{near_address}/24", "dev", near_name)
        near.run("ip", "link", "set", near_name, "up")
        far.run("ip", "address", "add", f"{far_address}/24", "dev", far_name)
        far.run("ip", "link", "set", far_name, "up")
        far.run("ip", "route", "add", "default", "via", near_address)

    def public(self, space, number):
        """A machine with a public address."""
        self.cable(self.router, f"p{number}", f"203.0.{number}.1", space, "wan", f"203.0.{number}.2")
        return space

    def home(self, number):
        return os.path.join(self.folder, f"home-{number}")

    def state(self, number):
        return os.path.join(self.home(number), "state")

    def relay_number(self, which):
        return len(self.kinds) + 1 + which

    def start_relay(self, which, token=""):
        """A node with a public address and no rights that is a relay."""
        number = self.relay_number(which)
        os.makedirs(self.state(number), mode=0o700, exist_ok=True)
        process, _ = self.start(
            *(number, f"relay-{which}", BINARY, "mesh", "up", "--state", self.state(number), "--mode", "userspace"),
            *("--name", f"relay-{which}", "--relay", "--relay-tls", "443"),
            env={"ATOLL_MESH_TOKEN": token},
        )
        return process

    def join(self, number, token, *options):
        """Starts a node, and lets its machine ask it for names; its process and the address of its services."""
        mode, _ = self.kinds[number - 1]
        process, line = self.start(
            *(number, f"node-{number}", BINARY, "mesh", "up", "--state", self.state(number)),
            *("--name", f"node-{number}", "--mode", "userspace" if mode == "userspace" else "tun", *options),
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

    def cut_off(self, number, back=False):
        """The provider's line to the internet is down, or up again."""
        gateway = self.gateways[number]
        gateway.run("ip", "link", "set", "wan", "up" if back else "down")
        if back:
            gateway.run("ip", "route", "replace", "default", "via", f"203.0.{number}.1")

    def only_tls(self, number):
        """The provider lets nothing pass any more but TCP to port 443."""
        for rule in "meta l4proto udp drop", "iifname lan tcp dport != 443 drop":
            self.gateways[number].run("nft", f"insert rule ip wall pass {rule}")

    def over(self, number, name):
        """Over what a node reaches another: an address, `relay NAME`, or nothing."""
        peer = self.peer(number, name) or {}
        return f"relay {peer['relay']}" if peer.get("relay") else peer.get("endpoint")

    def registered(self, number):
        relays = self.status(number)["relays"]
        return len(relays) == self.relays and all(relay["udp"] or relay["tls"] for relay in relays)

    def wait_for_relays(self, *numbers):
        for number in numbers:
            wait_until(lambda: self.registered(number), PATIENCE, f"node {number} is registered with its relays")

    def end(self):
        super().end()
        for space in [self.router, *self.gateways.values()]:
            subprocess.run(["ip", "netns", "delete", space.name], check=False)
        for space in self.spaces:
            if isinstance(space, Owned):
                space.end()
