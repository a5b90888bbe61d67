"""What an instance of Atoll has on the host, seen from outside, without asking Atoll."""

import glob
import hashlib
import ipaddress
import json
import os
import subprocess

# Where the instances of one network agree on ranges and on forwarding.
SHARED = "/run/atoll/network"
FORWARDING = "/proc/sys/net/ipv4/ip_forward"


def instance_name(data_dir: str) -> str:
    """Four hexadecimal digits: every name on the host that belongs to the instance has them."""
    return hashlib.sha256(os.path.realpath(data_dir).encode()).hexdigest()[:4]


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _processes() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()]


def processes(data_dir: str) -> list[str]:
    """Processes in the instance's control groups or started with its data directory."""
    group = f"atoll-{instance_name(data_dir)}"
    found = []
    for pid in _processes():
        if int(pid) == os.getpid():
            continue
        command = _read(f"/proc/{pid}/cmdline").replace("\0", " ")
        atoll = "atoll" in os.path.basename(command.split(" ")[0]) or "atoll" in command.split("--")[0]
        if group in _read(f"/proc/{pid}/cgroup") or (atoll and data_dir in command and "pytest" not in command):
            state, parent = (_read(f"/proc/{pid}/stat").rsplit(")", 1)[-1].split() + ["", ""])[:2]
            if (state, parent) == ("Z", "1"):
                # It outlived its parent and has ended: the machine's first process will bury it.
                continue
            found.append(f"process {pid} {state} {command[:120]}")
    return found


def interfaces(data_dir: str) -> list[str]:
    prefix = f"at{instance_name(data_dir)}."
    return [f"interface {name}" for name in os.listdir("/sys/class/net") if name.startswith(prefix)]


def rules(data_dir: str) -> list[str]:
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
    name = f"atoll_{instance_name(data_dir)}"
    return [f"nftables {line}" for line in tables.splitlines() if line.split()[-1] == name]


def address_range(data_dir: str):
    """The block of addresses that the instance chose, which it keeps between runs; None before.

    Also None once another instance has it: one that has stopped has no right to its block.
    """
    text = _read(f"{data_dir}/agent/range")
    if not text:
        return None
    block = ipaddress.ip_network(json.loads(text))
    for path in glob.glob(f"{SHARED}/*.instance"):
        other = _read(path)
        if other and os.path.basename(path) != f"{instance_name(data_dir)}.instance":
            if ipaddress.ip_network(json.loads(other)["range"]).overlaps(block):
                return None
    return block


def network_namespaces(data_dir: str) -> list[str]:
    """Network namespaces that some process is in or holds open, and with an address of the instance.

    Nothing that Atoll makes has a name, so one that nobody holds is gone.
    """
    block = address_range(data_dir)
    if block is None:
        return []
    found = {}
    for pid in _processes():
        try:
            held = [f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue
        for path in [f"/proc/{pid}/ns/net", *held]:
            try:
                name = os.readlink(path)
            except OSError:
                continue
            if name.startswith("net:["):
                found.setdefault(name, path)
    found.pop(os.readlink("/proc/self/ns/net"), None)
    left = []
    for name, path in found.items():
        # It may vanish meanwhile, which is no leak.
        shown = subprocess.run(
            ["nsenter", f"--net={path}", "ip", "-4", "-json", "address"], capture_output=True, text=True
        ).stdout
        addresses = [
            ipaddress.ip_address(address["local"])
            for link in json.loads(shown or "[]")
            for address in link.get("addr_info", [])
            if "local" in address
        ]
        if any(address in block for address in addresses):
            left.append(f"network namespace {name} at {path}")
    return left


def routes(data_dir: str) -> list[str]:
    """Routes of the host into the instance's block, above all the one that reserves it."""
    block = address_range(data_dir)
    shown = subprocess.run(["ip", "-4", "route", "show", "table", "all"], capture_output=True, text=True, check=True)
    found = []
    for line in shown.stdout.splitlines():
        for word in line.split()[:3]:
            try:
                destination = ipaddress.ip_network(word)
            except ValueError:
                continue
            if block is not None and destination.subnet_of(block):
                found.append(f"route {line.strip()}")
    return found


def shared_files(data_dir: str) -> list[str]:
    """What is left in the folder that all instances share."""
    left = []
    own = f"{instance_name(data_dir)}.instance"
    names = set(os.listdir(SHARED)) if os.path.isdir(SHARED) else set()
    if own in names:
        left.append(f"shared file {own}")
    # What forwarding was before is remembered while an instance is there, and no longer.
    if "forwarding" in names and not any(name.endswith(".instance") for name in names):
        left.append("shared file forwarding")
    left += [f"shared file {name}" for name in names if name.endswith(".next")]
    return left


def forwarding() -> str:
    """`net.ipv4.ip_forward` as it is, or as it was before the first of the instances that run."""
    remembered = _read(f"{SHARED}/forwarding")
    return json.loads(remembered).strip() if remembered else _read(FORWARDING).strip()


def control_groups(data_dir: str) -> list[str]:
    name = f"atoll-{instance_name(data_dir)}"
    found = []
    for hierarchy in ["/sys/fs/cgroup"] + glob.glob("/sys/fs/cgroup/*/"):
        for root, folders, _ in os.walk(hierarchy):
            depth = root[len(hierarchy):].count("/")
            found += [f"cgroup {os.path.join(root, folder)}" for folder in folders if folder == name]
            if depth >= 3:
                folders.clear()
    return sorted(set(found))


def mounts(data_dir: str) -> list[str]:
    """Mounts that mention the data directory, in the mount namespace of any process."""
    found = set()
    seen = set()
    for pid in _processes():
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
        except OSError:
            continue
        if namespace in seen:
            continue
        seen.add(namespace)
        for line in _read(f"/proc/{pid}/mountinfo").splitlines():
            if data_dir in line:
                found.add(f"mount in {namespace}: {line[:160]}")
    return sorted(found)


def loop_devices(data_dir: str) -> list[str]:
    found = []
    for path in glob.glob("/sys/block/loop*/loop/backing_file"):
        backing = _read(path).strip()
        if backing.startswith(data_dir):
            found.append(f"loop device {path.split('/')[3]} on {backing}")
    return found


def layer_files(data_dir: str) -> list[str]:
    return [
        f"file {path}"
        for path in glob.glob(f"{data_dir}/layers/*.img")
        if os.path.basename(path).split(".")[0].isdigit()
    ]


def mesh_identities(data_dir: str) -> list[str]:
    """Who sandboxes were in the mesh: kept for as long as they live."""
    return [f"mesh identity {path}" for path in glob.glob(f"{data_dir}/agent/mesh/*")]


def everything(data_dir: str) -> list[str]:
    """All traces of the instance; empty when it has left nothing."""
    data_dir = os.path.realpath(data_dir)
    return (
        processes(data_dir)
        + interfaces(data_dir)
        + rules(data_dir)
        + network_namespaces(data_dir)
        + routes(data_dir)
        + shared_files(data_dir)
        + control_groups(data_dir)
        + mounts(data_dir)
        + loop_devices(data_dir)
        + layer_files(data_dir)
        + mesh_identities(data_dir)
    )
