"""Management controllers from PyPI on loopback, and nodes that come and go as these say."""

import contextlib
import hashlib
import http.server
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import uuid

import bcrypt

USER, PASSWORD = "admin", "a pass/word"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Node:
    """Something that listens while the machine is on."""

    def __init__(self):
        # Bound and not listening: it answers nobody, and nobody else gets the port meanwhile.
        self.place = socket.socket()
        self.place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.place.bind(("127.0.0.1", 0))
        self.address = "%s:%d" % self.place.getsockname()
        self.listener = None
        # How often it went up and down.
        self.ups = self.downs = 0
        self.lock = threading.Lock()

    def up(self):
        with self.lock:
            if self.listener is None:
                self.listener = socket.create_server(self.place.getsockname(), reuse_port=True)
                self.ups += 1

    def down(self):
        with self.lock:
            if self.listener is not None:
                # A thread that accepts nothing: closing is enough.
                self.listener.close()
                self.listener = None
                self.downs += 1

    @property
    def is_up(self):
        return self.listener is not None


class Sushy:
    """`sushy-emulator --fake` over TLS with basic authentication: its transitions take 1 to 11 s,
    and are told to a simulated kubelet, which brings nodes up and down."""

    def __init__(self, folder, count, on=()):
        self.folder = folder
        self.names = [f"m{number}" for number in range(count)]
        self.ids = {name: str(uuid.uuid4()) for name in self.names}
        self.nodes = {name: Node() for name in self.names}
        for name in on:
            self.nodes[name].up()
        self.on = set(on)
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        self.port = free_port()
        certificate, key = (os.path.join(self.folder, name) for name in ("certificate.pem", "key.pem"))
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
            + ["-days", "2", "-subj", "/CN=controller", "-keyout", key, "-out", certificate],
            check=True,
            capture_output=True,
        )
        der = ssl.PEM_cert_to_DER_cert(open(certificate).read())
        self.fingerprint = hashlib.sha256(der).hexdigest()
        users = os.path.join(self.folder, "users")
        with open(users, "w") as file:
            file.write(f"{USER}:{bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()}\n")
        kubelet = self.stack.enter_context(Kubelet(self))
        systems = [
            {
                "uuid": self.ids[name],
                "name": name,
                "power_state": "On" if name in self.on else "Off",
                "external_notifier": True,
                "nics": [],
            }
            for name in self.names
        ]
        settings = {
            "SUSHY_EMULATOR_AUTH_FILE": users,
            "SUSHY_EMULATOR_FAKE_SYSTEMS": systems,
            "SUSHY_EMULATOR_STATE_DIR": self.folder,
            "EXTERNAL_NOTIFICATION_URL": kubelet.url,
        }
        config = os.path.join(self.folder, "sushy.conf")
        with open(config, "w") as file:
            file.writelines(f"{name} = {value!r}\n" for name, value in settings.items())
        program = os.path.join(os.path.dirname(sys.executable), "sushy-emulator")
        arguments = ["--fake", "-i", "127.0.0.1", "-p", str(self.port), "--config", config]
        arguments += ["--ssl-certificate", certificate, "--ssl-key", key]
        log = self.stack.enter_context(open(os.path.join(self.folder, "sushy.log"), "wb"))
        process = subprocess.Popen([program, *arguments], stdout=log, stderr=log)
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        self.stack.callback(lambda: [node.down() for node in self.nodes.values()])
        self.address = f"https://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_):
        self.stack.close()

    def power(self, name, **changes):
        """A machine's controller as a table of the configuration."""
        table = {
            "driver": "redfish",
            "address": self.address,
            "system": f"/redfish/v1/Systems/{self.ids[name]}",
            "user": USER,
            "password": {"env": "BMC_PASSWORD"},
            "certificate_sha256": self.fingerprint,
        }
        return table | changes


class Kubelet:
    """Is told what the emulator's machines do."""

    def __init__(self, sushy):
        of_id = {identity: sushy.nodes[name] for name, identity in sushy.ids.items()}

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_PUT(self):
                system = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                # A change that is only asked for is told as well.
                if not system.get("pending_power"):
                    node = of_id[system["uuid"]]
                    node.up() if system["power_state"] == "On" else node.down()
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


class FakeBmc:
    """pyghmi's `fakebmc`: IPMI 2.0 over LAN+. What it prints is what the machine does."""

    def __init__(self):
        self.port = free_port()
        self.node = Node()
        self.said = []

    def __enter__(self):
        program = os.path.join(os.path.dirname(sys.executable), "fakebmc")
        self.process = subprocess.Popen(
            [sys.executable, "-u", program, "--port", str(self.port)], stdout=subprocess.PIPE, text=True
        )
        self.thread = threading.Thread(target=self.follow, daemon=True)
        self.thread.start()
        return self

    def follow(self):
        for line in self.process.stdout:
            self.said.append(line.strip())
            if line.startswith("powered on"):
                self.node.up()
            elif line.startswith(("politely", "abruptly")):
                self.node.down()

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.thread.join()
        self.node.down()
