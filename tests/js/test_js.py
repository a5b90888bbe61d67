"""Runs the JavaScript SDK's tests against the instance that the session shares."""

import os
import shutil
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))


def test_official_javascript_sdk(atoll):
    assert shutil.which("node"), "Node.js is missing: tests/run.sh brings it"
    environment = {
        **os.environ,
        "E2B_API_KEY": atoll.key,
        "E2B_API_URL": atoll.url,
        "E2B_SANDBOX_URL": atoll.url,
    }
    done = subprocess.run(
        ["node", "--test", "main.test.mjs"], cwd=HERE, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
