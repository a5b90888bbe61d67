"""A real etcd, PostgreSQL and Redis across three providers behind NATs, in each of the three modes: by names, through a cut and a death."""

import glob
import os
import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from mesh_world import PATIENCE, kill
from providers_world import CONE, SYMMETRIC, Providers

from harness.atoll import WORK, wait_until

POLICY = """
relays = ["tag:relay"]

[services.db]
nodes = ["tag:db"]
ports = ["tcp/2379", "tcp/2380", "tcp/5432", "tcp/6379", "tcp/16379"]

[[allow]]
from = ["tag:db"]
to = ["service:db"]
"""
PORTS = 2379, 2380, 5432, 6379, 16379
# How long a provider is away.
CUT = 30
# Enough that each of three members has some.
KEYS = [f"key-{number}" for number in range(12)]
# Seconds between one write and the next: what matters is that there are some in every moment, not how many.
PACE = 0.2
POSTGRES = max(glob.glob("/usr/lib/postgresql/*/bin"), default="/usr/lib/postgresql/bin")
SETTINGS = """
unix_socket_directories = ''
synchronous_standby_names = '*'
wal_sender_timeout = 5s
wal_receiver_timeout = 5s
tcp_keepalives_idle = 5
tcp_keepalives_interval = 1
tcp_keepalives_count = 5
fsync = off
"""


class Databases:
    """Three machines with an etcd and a Redis each; PostgreSQL at the first, its replica at the second; the third writes."""

    def __init__(self, world, mode):
        self.world, self.mode = world, mode
        world.set_policy(POLICY)
        world.start_relay(0, world.token("--tags", "relay"))
        token = world.token("--tags", "db", "--reuse")
        self.nodes, self.addresses, self.etcds, self.postgres, self.redis = {}, {}, {}, {}, {}
        for number in 1, 2, 3:
            self.nodes[number], self.addresses[number] = world.join(number, token)
        world.wait_for_relays(1, 2, 3)
        for number in self.nodes:
            for other in self.nodes:
                if number != other:
                    self.knows(number, other)
        self.acknowledged, self.writing = {"etcd": [], "postgres": []}, threading.Event()

    def knows(self, number, other):
        def allowed():
            peer = self.world.peer(number, f"node-{other}")
            return peer and peer["allowed"]

        wait_until(allowed, PATIENCE, f"node {number} may speak to node {other}")

    def unprivileged(self, *words):
        """PostgreSQL does not run as root."""
        return words if self.mode == "userspace" else ("unshare", "--user", "--map-user=1000", "--map-group=1000", *words)

    def start_etcds(self):
        world = self.world
        cluster = ",".join(f"node-{number}=http://node-{number}.mesh.internal:2380" for number in self.nodes)
        for number, address in self.addresses.items():
            name = f"node-{number}"
            words = ["etcd", "--name", name, "--data-dir", os.path.join(world.home(number), "etcd")]
            # So that a busy machine does not elect without end.
            words += ["--heartbeat-interval", "300", "--election-timeout", "3000", "--log-level", "error", "--logger", "zap"]
            for kind, port in ("peer", 2380), ("client", 2379):
                advertise = "--initial-advertise-peer-urls" if kind == "peer" else "--advertise-client-urls"
                words += [f"--listen-{kind}-urls", f"http://{address}:{port}"]
                words += [advertise, f"http://{name}.mesh.internal:{port}"]
            self.etcds[number] = world.run_in_background(number, f"etcd-{number}", *words, "--initial-cluster", cluster)

    def start_redis(self):
        """A cluster of three that share the keys, and tell each other their addresses."""
        world = self.world
        for number, address in self.addresses.items():
            folder = os.path.join(world.home(number), "redis")
            world.spaces[number].run("mkdir", folder)
            words = ["redis-server", "--port", "6379", "--bind", address, "--dir", folder, "--logfile", f"{folder}/log"]
            words += ["--protected-mode", "no", "--cluster-enabled", "yes", "--cluster-require-full-coverage", "no", "--save", ""]
            self.redis[number] = world.run_in_background(number, f"redis-{number}", *words)
        for number in self.nodes:
            wait_until(lambda n=number: self.redis_cli(3, n, "ping") == "PONG", PATIENCE, "Redis answers by its name")
        members = [f"{address}:6379" for address in self.addresses.values()]
        create = ["redis-cli", "--cluster", "create", *members, "--cluster-yes"]
        wait_until(lambda: world.spaces[3].run(*create, check=False).returncode == 0, PATIENCE, "Redis forms a cluster")
        self.redis_agrees()
        for key in KEYS:
            assert self.redis_cli(3, 1, "set", key, f"value of {key}") == "OK"

    def redis_cli(self, number, to, *words):
        """Goes on to whoever has the key."""
        ask = ["timeout", "10", "redis-cli", "-c", "-h", f"node-{to}.mesh.internal", *words]
        return self.world.spaces[number].run(*ask, check=False).stdout.strip()

    def redis_agrees(self):
        """Each member sees all others, and a copy of no key is missing."""

        def agree(number):
            said = self.redis_cli(number, number, "cluster", "info")
            return "cluster_state:ok" in said and "cluster_slots_ok:16384" in said and "cluster_known_nodes:3" in said

        for number in self.nodes:
            wait_until(lambda n=number: agree(n), PATIENCE, f"{self.mode}: Redis at node {number} sees all others")

    def etcdctl(self, number, to, *words):
        ask = ["etcdctl", f"--endpoints=http://node-{to}.mesh.internal:2379", "--command-timeout=5s", *words]
        done = self.world.spaces[number].run(*ask, check=False, env={"ETCDCTL_API": "3"})
        return done.stdout if done.returncode == 0 else None

    def psql(self, number, to, statement):
        words = [
            *("timeout", "60", f"{POSTGRES}/psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--command", statement),
            f"host=node-{to}.mesh.internal user=postgres dbname=postgres connect_timeout=5 keepalives_idle=5 keepalives_interval=1 keepalives_count=5",
        ]
        done = self.world.spaces[number].run(*words, check=False)
        return done.stdout if done.returncode == 0 else None

    def start_postgres(self):
        world = self.world
        data = os.path.join(world.home(1), "postgres")
        world.spaces[1].run(
            *self.unprivileged(f"{POSTGRES}/initdb", "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", "--locale=C")
        )
        with open(os.path.join(data, "postgresql.conf"), "a") as file:
            file.write(SETTINGS)
        with open(os.path.join(data, "pg_hba.conf"), "a") as file:
            # The mesh has decided already who gets here.
            file.write("host all postgres 0.0.0.0/0 trust\nhost replication postgres 0.0.0.0/0 trust\n")
        self.serve_postgres(1, data)
        wait_until(lambda: self.psql(3, 1, "select 1"), PATIENCE, "PostgreSQL answers by its name")
        # Until there is a replica, nothing would be acknowledged.
        copy = os.path.join(world.home(2), "postgres")
        source = "host=node-1.mesh.internal user=postgres"
        world.spaces[2].run(
            *self.unprivileged(f"{POSTGRES}/pg_basebackup", "-D", copy, "-d", source, "-R", "-X", "stream", "--no-sync", "-c", "fast")
        )
        self.serve_postgres(2, copy)
        streaming = "select state from pg_stat_replication where sync_state = 'sync'"
        wait_until(lambda: (self.psql(3, 1, streaming) or "").strip() == "streaming", PATIENCE, "the replica streams")
        assert self.psql(3, 1, "create table kept (number int)") is not None

    def serve_postgres(self, number, data):
        words = self.unprivileged(f"{POSTGRES}/postgres", "-D", data, "-c", f"listen_addresses={self.addresses[number]}")
        self.postgres[number] = self.world.run_in_background(number, f"postgres-{number}", *words)

    def write(self, kind, once):
        """Writes numbers until it is told to end, and keeps those that were acknowledged."""
        for number in range(10**6):
            if not self.writing.is_set():
                return
            if once(number) is not None:
                self.acknowledged[kind].append(number)
            time.sleep(PACE)

    def goes_on(self, kind, what):
        wanted = len(self.acknowledged[kind]) + 3
        wait_until(lambda: len(self.acknowledged[kind]) >= wanted, 2 * PATIENCE, f"{self.mode}: {kind} takes writes {what}")

    def kept(self, kind, text):
        found = {int(word) for word in text.split()}
        lost = [number for number in self.acknowledged[kind] if number not in found]
        assert not lost, f"{self.mode}: {kind} lost {lost}"

    def scenario(self):
        self.start_etcds()
        self.start_postgres()
        self.start_redis()
        wait_until(lambda: self.etcdctl(3, 1, "put", "first", "0"), 2 * PATIENCE, "etcd has a leader")
        self.writing.set()
        to = {"etcd": 3, "postgres": 1}
        writers = [
            threading.Thread(target=self.write, args=("etcd", lambda n: self.etcdctl(3, to["etcd"], "put", f"n/{n}", f"{n}"))),
            threading.Thread(
                target=self.write,
                args=("postgres", lambda n: self.psql(3, to["postgres"], f"insert into kept values ({n})")),
            ),
        ]
        for writer in writers:
            writer.start()
        try:
            for kind in self.acknowledged:
                self.goes_on(kind, "at first")
            self.nothing_from_outside()
            self.cut()
            self.death(to)
        finally:
            self.writing.clear()
            for writer in writers:
                writer.join()
        self.kept("etcd", self.etcdctl(3, 2, "get", "--prefix", "n/", "--print-value-only"))
        self.kept("postgres", self.psql(3, 2, "select number from kept"))

    def cut(self):
        """The replica's provider is away for a while. etcd goes on without it; PostgreSQL acknowledges nothing that the replica has not."""
        self.world.cut_off(2)
        back = time.monotonic() + CUT
        self.goes_on("etcd", "while a provider is away")
        wait_until(lambda: time.monotonic() >= back, CUT + PATIENCE, "the time is over")
        self.world.cut_off(2, back=True)
        for kind in self.acknowledged:
            self.goes_on(kind, "when the provider is back")
        self.redis_agrees()
        for key in KEYS:
            assert self.redis_cli(2, 3, "get", key) == f"value of {key}", self.mode

    def death(self, to):
        """The first provider dies with all that it has. The replica takes over."""
        self.world.cut_off(1)
        for process in self.nodes[1], self.etcds[1], self.postgres[1], self.redis[1]:
            kill(process)
        self.goes_on("etcd", "when a provider is dead")
        assert self.psql(3, 2, "select pg_promote()") is not None
        alone = "alter system set synchronous_standby_names = ''", "select pg_reload_conf()"
        assert all(self.psql(3, 2, statement) is not None for statement in alone)
        to["postgres"] = 2
        self.goes_on("postgres", "when the replica took over")

    def nothing_from_outside(self):
        """From the internet no port is reached, at whatever address."""
        for number in self.nodes:
            for address in f"203.0.{number}.2", f"10.0.{number}.2":
                for port in PORTS:
                    words = ["timeout", "0.5", "bash", "-c", f"exec 3<>/dev/tcp/{address}/{port}"]
                    assert self.world.router.run(*words, check=False).returncode != 0, (address, port)


def run(mode, folder, data):
    world = Providers(folder, [(mode, CONE), (mode, SYMMETRIC), (mode, CONE)], name=f"-{mode}", data=data)
    try:
        Databases(world, mode).scenario()
    finally:
        world.end()


def test_etcd_postgresql_and_redis_lose_nothing_in_any_of_the_three_modes():
    modes = "tun", "userns", "userspace"
    # Below /tmp, where everybody may enter.
    folders = [tempfile.mkdtemp(prefix=f"atoll-mesh-{mode}-") for mode in modes]
    data = [tempfile.mkdtemp(prefix="mesh-", dir=WORK) for _ in modes]
    try:
        # At the same time, as most of it is waiting.
        with ThreadPoolExecutor(len(modes)) as pool:
            list(pool.map(run, modes, folders, data))
    finally:
        for path in folders + data:
            shutil.rmtree(path, ignore_errors=True)
