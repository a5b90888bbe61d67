"""Shows what Atoll does: the official SDK, unchanged, runs code in a sandbox.

Usage: tour.py PATH-OF-ATOLL, with E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY set.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

from e2b import Sandbox

URL = os.environ["E2B_API_URL"]
TEMPLATE_DEADLINE = 30 * 60
PORT_DEADLINE = 10


def fetch(url: str, **headers: str) -> bytes:
    request = urllib.request.Request(url, headers=headers)
    # Straight to this machine, whatever proxy the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=10) as response:
        return response.read()


def wait_for_template(name: str) -> None:
    """Returns when sandboxes can start from the template; Atoll itself shows the progress."""
    deadline = time.monotonic() + TEMPLATE_DEADLINE
    first = None
    while time.monotonic() < deadline:
        templates = json.loads(fetch(f"{URL}/v1/templates", **{"X-API-Key": os.environ["E2B_API_KEY"]}))
        for template in templates:
            if name not in [full.rsplit("/", 1)[-1] for full in template["names"]]:
                continue
            newest = template["builds"][0] if template["builds"] else {"status": "waiting"}
            first = first or newest
            if newest["status"] == "ready":
                return
            # A failure of the last run is being tried again.
            again = first["status"] == "error" and first.get("finishedAt") == newest.get("finishedAt")
            if newest["status"] == "error" and not again:
                sys.exit(f"error: template {name} was not built: {newest.get('message')}")
        time.sleep(0.1)
    sys.exit(f"error: template {name} is not ready after {TEMPLATE_DEADLINE} s")


def show(what: str, result: str) -> None:
    print(f"  {what:<44} {result.strip()}", flush=True)


def wait_for_port(sandbox: Sandbox, port: int) -> str:
    """What the server in the sandbox answers, through the gateway."""
    deadline = time.monotonic() + PORT_DEADLINE
    while True:
        try:
            answer = fetch(URL, **{"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(port)})
            return answer.decode()
        except urllib.error.HTTPError as error:
            # 502: the server in the sandbox does not listen yet.
            if error.code != 502 or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def main(atoll: str) -> None:
    wait_for_template("base")
    print("\nA tour, with the official Python SDK:", flush=True)

    began = time.monotonic()
    sandbox = Sandbox.create(timeout=120)
    first = sandbox.commands.run("python3 -c 'print(6 * 7)'")
    milliseconds = (time.monotonic() - began) * 1000
    assert first.stdout.strip() == "42", first
    try:
        show("python3 -c 'print(6 * 7)' in a new sandbox", first.stdout)
        print(f"  time to first result: {milliseconds:.1f} ms (create, then Python's answer)", flush=True)

        sandbox.files.write("notes/hello.txt", "written through the SDK")
        content = sandbox.commands.run("cat notes/hello.txt").stdout
        assert content == "written through the SDK", content
        show("cat notes/hello.txt", content)

        sandbox.commands.run("cd notes && python3 -m http.server 8000", background=True)
        listing = wait_for_port(sandbox, 8000)
        assert "hello.txt" in listing, listing
        show("GET / on port 8000, through the gateway", "a listing with hello.txt")
    finally:
        sandbox.kill()

    command = ["run", "base", "--", "sh", "-c", "echo hello from $(hostname)"]
    answer = subprocess.run(
        [atoll, *command],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "ATOLL_URL": URL},
        timeout=60,
    )
    assert answer.stdout.startswith("hello from "), answer
    show("atoll run base -- sh -c 'echo hello …'", answer.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
