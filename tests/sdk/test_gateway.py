"""Ports of a sandbox through the gateway: HTTP and WebSocket, by header and by name."""

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request

import pytest
from e2b import AsyncSandbox, Sandbox
from websockets.sync.client import connect

from harness.atoll import wait_until

ECHO_SERVER = r"""
import base64, hashlib, http.server, socketserver
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if "websocket" in self.headers.get("Upgrade", "").lower():
            accept = base64.b64encode(hashlib.sha1((self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
            self.send_response(101)
            for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept)):
                self.send_header(name, value)
            self.end_headers()
            while True:
                head = self.rfile.read(2)
                if len(head) < 2 or head[0] & 15 == 8: break
                size = head[1] & 127
                mask = self.rfile.read(4)
                body = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(size)))
                self.wfile.write(bytes([0x81, len(body)]) + body)
            self.close_connection = True
            return
        body = ("path " + self.path + " host " + self.headers["Host"] + " key " + str(self.headers.get("X-API-Key"))).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))[::-1]
        self.send_response(201); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def log_message(self, *a): pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer): daemon_threads = True
Server(("0.0.0.0", 3000), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def server(atoll):
    box = Sandbox.create(timeout=300)
    box.files.write("server.py", ECHO_SERVER)
    box.commands.run("python3 server.py", background=True)
    wait_until(lambda: fetch(atoll, box, "/")[0] == 200, 10, "the server answers")
    yield box
    box.kill()


def fetch(atoll, box, path, port=3000, method="GET", body=None, headers=None, by_name=True):
    address = urllib.parse.urlparse(atoll.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
    if by_name:
        extra = {"Host": f"{port}-{box.sandbox_id}.atoll.test"}
    else:
        extra = {"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": str(port)}
    connection.request(method, path, body=body, headers={**extra, **(headers or {})})
    response = connection.getresponse()
    return response.status, response.read()


def test_by_name_and_by_header(atoll, server):
    status, body = fetch(atoll, server, "/x?y=1")
    assert status == 200 and body.startswith(b"path /x?y=1 host 3000-")
    status, body = fetch(atoll, server, "/x", by_name=False)
    assert status == 200 and body.startswith(b"path /x")
    assert fetch(atoll, server, "/", method="POST", body=b"abc") == (201, b"cba")


def test_the_api_key_stays_outside(atoll, server):
    _, body = fetch(atoll, server, "/", headers={"X-API-Key": atoll.key})
    assert b"key None" in body


def test_websocket(atoll, server):
    address = urllib.parse.urlparse(atoll.url)
    import socket

    raw = socket.create_connection((address.hostname, address.port))
    with connect(f"ws://3000-{server.sandbox_id}.atoll.test/ws", sock=raw) as channel:
        for text in ("one", "two"):
            channel.send(text)
            assert channel.recv(timeout=5) == text


def test_error_bodies(atoll, server):
    status, body = fetch(atoll, server, "/", port=3999)
    said = json.loads(body)
    assert status == 502 and said["message"] == "The sandbox is running but port is not open"
    assert said["port"] == 3999 and said["sandboxId"] == server.sandbox_id and said["code"] == 502

    class Gone:
        sandbox_id = "i" + "0" * 20

    status, body = fetch(atoll, Gone, "/")
    assert status == 502 and json.loads(body)["message"] == "The sandbox was not found"
    for route in ("/init", "/freeze", "/_atoll/logs"):
        assert fetch(atoll, server, route, port=49983, method="POST")[0] == 404
    address = urllib.parse.urlparse(atoll.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
    connection.request("GET", "/", headers={"E2b-Sandbox-Id": server.sandbox_id})
    assert connection.getresponse().status == 400


def test_private_ports_want_the_traffic_token(atoll):
    with Sandbox.create(timeout=60, network={"allow_public_traffic": False}) as box:
        box.commands.run("python3 -m http.server 8000", background=True)
        token = box.traffic_access_token
        assert token
        assert fetch(atoll, box, "/", port=8000)[0] == 403
        assert fetch(atoll, box, "/", port=8000, headers={"e2b-traffic-access-token": "no"})[0] == 403
        wait_until(
            lambda: fetch(atoll, box, "/", port=8000, headers={"e2b-traffic-access-token": token})[0] == 200,
            10,
            "the port opens for the token",
        )
        assert box.commands.run("echo the SDK still works").exit_code == 0


async def test_get_host_names_the_port(atoll):
    async with await AsyncSandbox.create(timeout=60) as box:
        assert box.get_host(8080).startswith(f"8080-{box.sandbox_id}.")
