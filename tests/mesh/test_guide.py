"""The guide "Replicate a database across two providers" of docs/mesh.md, from its own text."""

import os
import re
import shlex
import shutil
import subprocess
import tempfile

import pytest
from mesh_world import PATIENCE
from providers_world import CONE, SYMMETRIC, Providers
from test_databases import POSTGRES

from harness.atoll import ADMIN_KEY, BINARY, WORK, wait_until

GUIDE = os.path.join(os.path.dirname(__file__), "..", "..", "docs", "mesh.md")
HEADING = "## Replicate a database across two providers"
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Which machine of the world each place of the guide is.
PLACES = {"coordinator": 0, "db-1": 1, "db-2": 2}
VERSION = os.path.basename(os.path.dirname(POSTGRES))

# A machine of its own as far as the guide sees it: names, databases, state. It stays until its input ends.
MACHINE = """
set -e
mount --bind "$1/resolv.conf" /etc/resolv.conf
for folder in /etc/postgresql /var/lib/postgresql /var/log/postgresql /run/postgresql; do
    mkdir -p $folder
    mount -t tmpfs none $folder
    chown postgres:postgres $folder
done
echo made
exec cat
"""
# The program with what a test needs and a reader does not: folders of its own, and nothing that is built first.
ATOLL = f"""#!/bin/sh
case "$1 $2" in
"up "*) exec {shlex.quote(BINARY)} "$@" --data-dir "$ATOLL_TEST_DATA" --driver container --no-base --pool-min 1 --pool-max 1 ;;
"mesh up" | "mesh serve" | "mesh status") exec {shlex.quote(BINARY)} "$@" --state "$ATOLL_TEST_STATE" ;;
*) exec {shlex.quote(BINARY)} "$@" ;;
esac
"""
# There is no service manager in a namespace.
SYSTEMCTL = f"""#!/bin/sh
exec pg_ctlcluster {VERSION} main "$1"
"""


def blocks():
    """Each block of the guide: the words after its fence, and its text."""
    with open(GUIDE) as file:
        text = file.read().split(HEADING, 1)[1].split("\n## ", 1)[0]
    found = [(words.split(), body) for words, body in BLOCK.findall(text)]
    assert len(found) > 10 and {words[1] for words, _ in found if words[0] == "sh"} == set(PLACES)
    return found


class Guide(Providers):
    """The guide's machines; 192.0.2.1 is the coordinator's."""

    def __init__(self, folder, data):
        self.holders = {}
        super().__init__(folder, [("tun", CONE), ("tun", SYMMETRIC)], relays=0, name="-guide", data=data)
        tools = os.path.join(folder, "tools")
        os.makedirs(tools)
        for name, text in ("atoll", ATOLL), ("systemctl", SYSTEMCTL):
            with open(os.path.join(tools, name), "w") as file:
                file.write(text)
            os.chmod(file.name, 0o755)
        self.environment = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "ATOLL_API_KEY": ADMIN_KEY,
            "ATOLL_URL": "http://203.0.100.2:3000",
            "ATOLL_TEST_DATA": data,
        }
        for place, number in PLACES.items():
            os.makedirs(self.home(number), exist_ok=True)
            with open(os.path.join(self.home(number), "resolv.conf"), "w"):
                pass
            space = self.spaces[number]
            enter = getattr(space, "plain", space.words)
            words = enter("unshare", "--mount", "--propagation", "private", "sh", "-c", MACHINE, "sh", self.home(number))
            holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert holder.stdout.readline() == b"made\n"
            self.holders[place] = holder
            if place != "coordinator":
                self.shell(place, f"pg_createcluster {VERSION} main --start")

    def start_coordinator(self):
        """The guide starts it."""

    def words(self, place, script):
        return ["nsenter", f"--target={self.holders[place].pid}", "--mount", "--net", f"--wd={self.folder}", "bash", "-e", "-c", script]

    def surroundings(self, place):
        return {**os.environ, **self.environment, "ATOLL_TEST_STATE": self.state(PLACES[place])}

    def shell(self, place, script):
        done = subprocess.run(
            self.words(place, script),
            **{"capture_output": True, "text": True, "timeout": 120, "env": self.surroundings(place)},
        )
        assert done.returncode == 0, (place, script, done.stdout, done.stderr)
        return done.stdout

    def leave_running(self, place, script):
        """Starts what stays, and waits until it says that it is up."""
        name = f"{place}-{len(self.processes)}"
        with open(self.log(name), "ab") as log:
            process = subprocess.Popen(
                self.words(place, f"exec {script}" if "=" not in script.split()[0] else script),
                **{"stdout": subprocess.PIPE, "stderr": log, "env": self.surroundings(place)},
            )
        self.processes.append(process)
        line = process.stdout.readline().decode()
        with open(self.log(name)) as log:
            assert line.split()[:1] in (["ready"], ["up"]), (script, line, log.read())
        return line

    def end(self):
        for place in "db-2", "db-1":
            if place in self.holders:
                subprocess.run(self.words(place, f"pg_ctlcluster {VERSION} main stop -m immediate"), check=False)
        super().end()
        for holder in self.holders.values():
            holder.stdin.close()
            holder.wait(PATIENCE)


@pytest.fixture
def guide():
    folder, data = tempfile.mkdtemp(prefix="atoll-guide-"), tempfile.mkdtemp(prefix="mesh-", dir=WORK)
    world = Guide(folder, data)
    yield world
    world.end()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(data, ignore_errors=True)


def test_the_guide_leads_to_a_replicated_database(guide):
    token, printed = "", ""
    last = None
    for (kind, *words), text in blocks():
        # Only what is another machine's or another version's here is exchanged.
        text = text.replace("192.0.2.1", "203.0.100.2").replace("15", VERSION) if kind == "sh" else text
        if kind == "toml":
            with open(os.path.join(guide.folder, words[0]), "w") as file:
                file.write(text)
        elif kind == "sh":
            text = text.replace("atm_...", token)
            assert "atm_..." not in text
            if words[1:] == ["stays"]:
                guide.leave_running(words[0], text.strip())
            else:
                last = (words[0], text)
                printed = guide.shell(*last)
                token = next((line for line in printed.splitlines() if line.startswith("atm_")), token)
        else:
            # What the last command prints, once the replica has caught up.
            wait_until(lambda: guide.shell(*last) == text, PATIENCE, f"{last} prints {text!r}")
    # The service's name leads to its address and another one to both nodes, and neither is seen from the internet.
    assert guide.shell("db-2", "dig +short @100.64.0.3 db.mesh.internal").split() == ["100.127.0.1"]
    found = guide.shell("db-2", "dig +short @100.64.0.3 all.db.mesh.internal").split()
    assert sorted(found) == ["100.64.0.2", "100.64.0.3"]
    for number in 1, 2:
        knock = ["timeout", "0.5", "bash", "-c", f"exec 3<>/dev/tcp/203.0.{number}.2/5432"]
        assert guide.router.run(*knock, check=False).returncode != 0
