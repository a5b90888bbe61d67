"""The simulated controller, which the fleet's power driver is held against, is itself held against DMTF."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from harness.atoll import BINARY, ROOT, TARGET, WORK

from fleet.peers import Node
from fleet.test_power import Fleet, machine

# DMTF's own schemas (DSP8010), as this crate carries them; nothing of it is built.
SCHEMAS = ("nv-redfish-schema", "0.22.1")


@pytest.fixture(scope="module")
def schemas():
    """DMTF's schemas in a folder."""
    folder = os.path.join(WORK, "redfish-schemas")
    done = os.path.join(folder, ".done")
    if not os.path.exists(done):
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(os.path.join(folder, "src"))
        name, version = SCHEMAS
        with open(os.path.join(folder, "Cargo.toml"), "w") as file:
            file.write('[package]\nname = "schemas"\nversion = "0.0.0"\nedition = "2021"\n[workspace]\n')
            file.write(f'[dependencies]\n{name} = "={version}"\n')
        open(os.path.join(folder, "src", "lib.rs"), "w").close()
        command = ["cargo", "metadata", "--format-version", "1"]
        found = json.loads(subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout)
        [package] = [one for one in found["packages"] if one["name"] == name]
        source = os.path.join(os.path.dirname(package["manifest_path"]), "redfish-csdl", "csdl")
        for schema in os.listdir(source):
            shutil.copy(os.path.join(source, schema), folder)
        open(done, "w").close()
    return folder


class Bmc:
    """`crates/bmc` as a process."""

    def __init__(self, count):
        program = os.environ.get("ATOLL_BMC_BINARY", os.path.join(TARGET, "debug", "bmc"))
        if not os.path.exists(program):
            # Built with the other tests, as a rule.
            subprocess.run(["cargo", "build", "--quiet", "--locked", "-p", "bmc"], cwd=ROOT, check=True)
        self.process = subprocess.Popen(
            [program, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        ready, self.url, self.fingerprint = self.process.stdout.readline().split()
        assert ready == "ready"

    def tell(self, line):
        print(line, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        assert self.process.wait(30) == 0


def validate(bmc, schemas, folder, how="Session"):
    """What DMTF's validator says: how many checks passed, warned and failed."""
    program = os.path.join(os.path.dirname(sys.executable), "rf_service_validator")
    command = [program, "-r", bmc.url, "-u", "admin", "-p", "password", "--authtype", how]
    command += ["--schema_directory", schemas, "--skipschema", "--logdir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder)
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    passed, warned, failed, _ = (int(cell) for cell in rows[-1].strip("|").split("|"))
    assert done.returncode == (1 if failed else 0), done.stdout
    return passed, warned, failed, done.stdout


def test_the_service_validator_accepts_it(schemas, tmp_path):
    with Bmc(2) as bmc:
        passed, warned, failed, said = validate(bmc, schemas, tmp_path)
        assert (warned, failed) == (0, 0), said
        assert passed > 150, said
        # It would have found what is wrong.
        assert bmc.tell("fault m1 status:500") == "ok"
        _, _, failed, said = validate(bmc, schemas, tmp_path, "Basic")
        assert failed > 0, said


def test_watts_follow_the_machine(fleet, tmp_path):
    with Bmc(1) as bmc:
        assert bmc.tell("power m0") == "Off 5 W"
        node = Node()
        controller = {
            "driver": "redfish",
            "address": bmc.url,
            "user": "admin",
            "password": {"env": "BMC_PASSWORD"},
            "certificate_sha256": bmc.fingerprint,
        }
        fleet.environment["BMC_PASSWORD"] = "password"
        fleet.write([machine("m0", node, controller)])
        assert fleet.power("m0", "status")["controllers"][0]["says"] == "off"
        assert bmc.tell("fault m0 status:401") == "ok"
        assert "user and password" in fleet.power("m0", "status")["controllers"][0]["says"]
        assert bmc.tell("fault m0") == "ok"
        switching = subprocess.Popen(
            [BINARY, "fleet", "power", "m0", "on", "--config", fleet.config], env=fleet.environment
        )
        seen = set()
        end = time.monotonic() + 60
        while switching.poll() is None and time.monotonic() < end:
            state, watts = bmc.tell("power m0").split(" ", 1)
            seen.add(state)
            if (state, watts) == ("On", "120 W"):
                node.up()
        assert switching.wait(60) == 0
        assert seen == {"Off", "Starting", "On"}
        assert bmc.tell("power m0") == "On 120 W"
        node.down()


@pytest.fixture
def fleet(tmp_path):
    return Fleet(str(tmp_path))
