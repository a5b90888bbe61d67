"""`make run ONCE=1` for the second time: seconds, and nothing is fetched."""

import os
import subprocess
import time

from harness import leaks
from harness.atoll import BINARY, ROOT, TARGET, copy_of_golden

# A network namespace without a way out, and a folder of its own for what instances of one network
# share. /sys shows the interfaces of the namespace in which it was mounted.
CUT_OFF = ["unshare", "--net", "--mount", "bash", "-euc"]
PREPARE = (
    "ip link set lo up; mkdir -p /run/atoll; mount -t tmpfs -o mode=0700 none /run/atoll; "
    "if timeout 5 bash -c ': < /dev/tcp/192.88.99.1/80' 2>/dev/null; then exit 99; fi; "
)


def test_a_second_run_fetches_nothing():
    # What the first time leaves behind: the SDK, the template, the program.
    subprocess.run([os.path.join(ROOT, "scripts", "venv.sh")], check=True, stdout=subprocess.DEVNULL)
    data_dir = os.path.realpath(copy_of_golden("second-run"))
    environment = {**os.environ, "CARGO_TARGET_DIR": TARGET, "ATOLL_DATA_DIR": data_dir, "ONCE": "1"}
    command = "make run"
    if "ATOLL_BINARY" in os.environ:
        # A program from elsewhere: what is in the tree is not built for it.
        environment["ATOLL_BINARY"] = BINARY
        command = "scripts/setup.sh run && scripts/run.sh"
    began = time.monotonic()
    done = subprocess.run(
        CUT_OFF + [PREPARE + command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )
    seconds = time.monotonic() - began
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert "in a new sandbox" in done.stdout and " 42" in done.stdout, told
    assert "time to first result" in done.stdout and "hello from" in done.stdout, told
    for word in ("installing", "fetching", "Downloading", "Compiling"):
        assert word not in told, told
    assert seconds < 60, f"took {seconds:.1f} s:\n{told}"
    assert leaks.everything(data_dir) == []
