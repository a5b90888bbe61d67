"""Starts the real program, and stops it."""

import functools
import json
import os
import selectors
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request

from . import leaks

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TARGET = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
BINARY = os.environ.get("ATOLL_BINARY", os.path.join(TARGET, "release", "atoll"))
WORK = os.environ.get("ATOLL_TEST_DIR", os.path.join(TARGET, "atoll-test"))
ADMIN_KEY = "e2b_" + "a1" * 20
# How the sandboxes of these tests run; the same tests hold for every driver.
DRIVER = os.environ.get("ATOLL_TEST_DRIVER", "container")
# Machines whose instructions are translated are slower by about this factor.
SLOWNESS = 1 if DRIVER == "container" else 6


def wait_until(condition, seconds: float, what: str):
    """Polls `condition` until it is truthy and returns its value; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}; last seen {value!r}")
        time.sleep(0.02)


class Atoll:
    """One `atoll up` with a data directory of its own."""

    def __init__(self, data_dir: str, *arguments: str, key: str = ADMIN_KEY):
        self.data_dir = os.path.realpath(data_dir)
        self.arguments = list(arguments)
        self.key = key
        self.process = None
        self.url = None
        self.forwarding = None
        os.makedirs(self.data_dir, exist_ok=True)

    def start(self, deadline: float = 30 * SLOWNESS) -> "Atoll":
        if self.forwarding is None:
            self.forwarding = leaks.forwarding()
        log = open(os.path.join(os.path.dirname(self.data_dir), os.path.basename(self.data_dir) + ".log"), "ab")
        self.process = subprocess.Popen(
            [BINARY, "up", "--data-dir", self.data_dir, "--listen", "127.0.0.1:0", "--driver", DRIVER]
            + self.arguments,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "ATOLL_API_KEY": self.key},
            start_new_session=True,
        )
        log.close()
        selector = selectors.DefaultSelector()
        selector.register(self.process.stdout, selectors.EVENT_READ)
        end = time.monotonic() + deadline
        text = b""
        while b"\n" not in text:
            assert selector.select(max(0, end - time.monotonic())), "no `ready` line in time"
            chunk = os.read(self.process.stdout.fileno(), 4096)
            assert chunk, f"atoll ended with {self.process.wait()} before it was ready; see {log.name}"
            text += chunk
        line = text.decode().splitlines()[0]
        assert line.startswith("ready http://"), line
        self.url = line.split(" ", 1)[1]
        return self

    def stop(self, deadline: float = 30) -> int:
        """SIGTERM, as a service manager would."""
        self.process.send_signal(signal.SIGTERM)
        return self._reap(deadline)

    def kill(self) -> None:
        """SIGKILL to the program itself: nothing of its own code runs any more."""
        self.process.kill()
        self._reap(10)

    def _reap(self, deadline: float) -> int:
        code = self.process.wait(deadline)
        self.process.stdout.close()
        self.process = None
        return code

    def request(self, method: str, path: str, body=None, key: str | None = None, headers=None):
        """A call to the API: (status, parsed body or None, headers)."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        request.add_header("X-API-Key", self.key if key is None else key)
        if data is not None:
            request.add_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                raw, status, answered = response.read(), response.status, response.headers
        except urllib.error.HTTPError as error:
            raw, status, answered = error.read(), error.code, error.headers
        try:
            parsed = json.loads(raw) if raw else None
        except ValueError:
            parsed = raw.decode(errors="replace")
        return status, parsed, answered

    def wait_for_template(self, name: str = "base", seconds: float = 600) -> None:
        def ready():
            status, body, _ = self.request("GET", "/v1/templates")
            assert status == 200, body
            for template in body:
                if name in template["names"]:
                    states = {build["status"] for build in template["builds"]}
                    assert states != {"error"}, template
                    return "ready" in states
            return False

        wait_until(ready, seconds, f"template {name} is ready")

    def sdk_options(self, key: str | None = None) -> dict:
        """What the official SDK needs to talk to this instance and no other."""
        return {"api_key": key or self.key, "api_url": self.url, "sandbox_url": self.url}

    def leaks(self) -> list[str]:
        """What is left on the host of this instance; nothing, if it stopped as it should."""
        found = leaks.everything(self.data_dir)
        if leaks.forwarding() != self.forwarding:
            found.append(f"net.ipv4.ip_forward was {self.forwarding} and will be {leaks.forwarding()}")
        return found


@functools.cache
def golden_data_dir() -> str:
    """A data directory in which the `base` template is built, made once and never in use: only copied."""
    common = os.path.join(WORK, "golden")
    path = common if DRIVER == "container" else f"{common}-{DRIVER}"
    if not os.path.exists(path) and os.path.exists(common):
        # The root file system is the same for all drivers.
        subprocess.run(["cp", "-a", "--reflink=auto", common, path], check=True)
    atoll = Atoll(path).start()
    try:
        atoll.wait_for_template()
        # A node makes what sandboxes of a template start from when the first one is asked for, if
        # it was not made with the template.
        status, body, _ = atoll.request("POST", "/v2/sandboxes", {"templateID": "base"})
        assert status == 201, body
        atoll.request("DELETE", f"/sandboxes/{body['sandboxID']}")
    finally:
        assert atoll.stop() == 0
    return path


def copy_of_golden(name: str) -> str:
    """A fresh data directory with the `base` template in it."""
    source = golden_data_dir()
    target = os.path.join(WORK, name)
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", "--reflink=auto", source, target], check=True)
    return target
