"""What an instance of Atoll has on the host, seen from outside, without asking Atoll."""

import glob
import hashlib
import os
import subprocess


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
            state = _read(f"/proc/{pid}/stat").rsplit(")", 1)[-1].split()[:1]
            found.append(f"process {pid} {state} {command[:120]}")
    return found


def interfaces(data_dir: str) -> list[str]:
    prefix = f"at{instance_name(data_dir)}."
    return [f"interface {name}" for name in os.listdir("/sys/class/net") if name.startswith(prefix)]


def rules(data_dir: str) -> list[str]:
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True).stdout
    name = f"atoll_{instance_name(data_dir)}"
    return [f"nftables {line}" for line in tables.splitlines() if line.split()[-1] == name]


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


def everything(data_dir: str) -> list[str]:
    """All traces of the instance; empty when it has left nothing."""
    data_dir = os.path.realpath(data_dir)
    return (
        processes(data_dir)
        + interfaces(data_dir)
        + rules(data_dir)
        + control_groups(data_dir)
        + mounts(data_dir)
        + loop_devices(data_dir)
        + layer_files(data_dir)
    )
