"""Programs on two nodes that prove to each other who they are, with certificates that a TLS library of others checks."""

import os
import subprocess

from mesh_world import PATIENCE, kill

from harness.atoll import BINARY, wait_until

POLICY = """
[services.shop]
nodes = ["tag:shop"]
ports = ["tcp/8443"]

[[allow]]
from = ["tag:app"]
to = ["service:shop"]
"""

# Takes one connection after the other, says which id the client shows, and asks for a certificate; DIRECTORY as argument.
SERVER = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{sys.argv[1]}/svid.pem", f"{sys.argv[1]}/svid_key.pem")
context.load_verify_locations(f"{sys.argv[1]}/svid_bundle.pem")
context.verify_mode = ssl.CERT_REQUIRED
listener = socket.create_server(("0.0.0.0", 8443))
print("listening", flush=True)
while True:
    connection, _ = listener.accept()
    try:
        with context.wrap_socket(connection, server_side=True) as stream:
            stream.sendall(dict(stream.getpeercert()["subjectAltName"])["URI"].encode())
    except (OSError, ssl.SSLError):
        pass
"""

# Connects to ADDRESS and expects NAME; DIRECTORY as third argument.
CLIENT = """
import socket, ssl, sys
context = ssl.create_default_context(cafile=f"{sys.argv[3]}/svid_bundle.pem")
if len(sys.argv) < 5:
    context.load_cert_chain(f"{sys.argv[3]}/svid.pem", f"{sys.argv[3]}/svid_key.pem")
with socket.create_connection((sys.argv[1], 8443), timeout=10) as connection:
    with context.wrap_socket(connection, server_hostname=sys.argv[2]) as stream:
        heard = stream.recv(200).decode()
        print(dict(stream.getpeercert()["subjectAltName"])["URI"], heard)
        sys.exit(not heard)
"""


def shows(file):
    words = "openssl", "x509", "-in", file, "-noout", "-text"
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def test_programs_prove_to_each_other_who_they_are(world):
    policy = os.path.join(world.folder, "policy.toml")
    with open(policy, "w") as file:
        file.write(POLICY)
    world.atoll("policy", "set", policy)
    _, shop = world.node(1, world.token("--tags", "shop"))
    world.node(2, world.token("--tags", "app"))
    tls = {number: os.path.join(world.folder, f"tls-{number}") for number in (1, 2)}
    log = os.path.join(world.folder, "reloaded")

    # A service's, kept for as long as the command runs; the directory is another user's, and so are the files.
    os.mkdir(tls[1])
    os.chown(tls[1], 1234, 1234)
    words = "--directory", tls[1], "--service", "shop", "--state", world.state(1), "--", "touch", log
    _, line = world.start(1, "certificate", BINARY, "mesh", "certificate", *words)
    assert line == "written spiffe://mesh.internal/service/shop\n"
    key = os.stat(os.path.join(tls[1], "svid_key.pem"))
    assert (key.st_uid, key.st_mode & 0o777) == (1234, 0o600)
    wait_until(lambda: os.path.exists(log), PATIENCE, "the command behind -- was run")
    text = shows(os.path.join(tls[1], "svid.pem"))
    for wanted in ("URI:spiffe://mesh.internal/service/shop", "DNS:shop.mesh.internal", "DNS:node-1.mesh.internal", "CA:FALSE"):
        assert wanted in text, text

    # A node's own. A service that policy gives to others is refused, and nothing is written.
    done = world.here(2, "certificate", "--directory", tls[2], "--once", "--service", "shop", check=False)
    assert done.returncode == 1 and "does not name this node" in done.stderr and not os.listdir(tls[2])
    done = world.here(2, "certificate", "--directory", tls[2], "--once")
    assert done.stdout == "written spiffe://mesh.internal/node/node-2\n"
    bundle, own = (os.path.join(tls[2], name) for name in ("svid_bundle.pem", "svid.pem"))
    verified = subprocess.run(["openssl", "verify", "-x509_strict", "-CAfile", bundle, own], capture_output=True, text=True)
    assert verified.returncode == 0, verified.stderr + verified.stdout

    # Each knows the other by its id; who shows nothing is not heard, and a name that is another's is not believed.
    world.start(1, "server", "python3", "-u", "-c", SERVER, tls[1])
    ids = "spiffe://mesh.internal/service/shop spiffe://mesh.internal/node/node-2"

    def calls(*words):
        done = world.spaces[2].run("python3", "-c", CLIENT, shop, *words, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    wait_until(lambda: calls("shop.mesh.internal", tls[2]) == ids, PATIENCE, "they know each other")
    assert calls("shop.mesh.internal", tls[2], "nothing to show") is None
    assert calls("node-2.mesh.internal", tls[2]) is None

    # The same authority after a restart of the coordinator: what it gives then is believed by those who have the old bundle.
    kill(world.coordinator)
    world.coordinator = world.start_coordinator()
    renewed = lambda: world.here(2, "certificate", "--directory", tls[2], "--once", check=False).returncode == 0
    wait_until(renewed, PATIENCE, "certificates are made again")
    assert calls("shop.mesh.internal", tls[2]) == ids
    assert all(".." not in name or name in ("..a", "..b", "..current") for name in os.listdir(tls[2]))

    # Who was put out gets none.
    world.atoll("revoke", "node-2")
    done = world.here(2, "certificate", "--directory", tls[2], "--once", check=False)
    assert done.returncode == 1, done.stdout
