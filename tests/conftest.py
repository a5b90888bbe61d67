"""Fixtures of the whole-system tests: the real program, the official SDK, nothing simulated."""

import os
import sys

import pytest

# The SDK reads this when it is imported. A connection that is refused is to be seen at once here, and not
# to be hidden, or waited for by the clients of an instance that was killed.
os.environ["E2B_CONNECTION_RETRIES"] = "0"

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from harness.atoll import WORK, Atoll, copy_of_golden  # noqa: E402


def pytest_configure(config):
    if os.geteuid() != 0:
        pytest.exit("the whole-system tests make namespaces and mounts: run them as root", 2)
    os.makedirs(WORK, exist_ok=True)


@pytest.fixture(scope="session")
def atoll():
    """One running instance that the tests of a session share; it must leave nothing behind."""
    instance = Atoll(copy_of_golden("shared")).start()
    instance.wait_for_template()
    os.environ["E2B_API_URL"] = os.environ["E2B_SANDBOX_URL"] = instance.url
    os.environ["E2B_API_KEY"] = instance.key
    yield instance
    assert instance.stop() == 0
    assert instance.leaks() == []


@pytest.fixture
def own_atoll(request):
    """Starts instances on fresh copies of the golden data directory: `own_atoll("--flag")`."""
    started = []

    def start(*arguments, **options):
        name = f"{request.node.name[:40].replace('[', '-').replace(']', '')}-{len(started)}"
        instance = Atoll(copy_of_golden(name), *arguments, **options)
        started.append(instance)
        return instance.start()

    yield start
    for instance in started:
        if instance.process is not None:
            instance.stop()


@pytest.fixture
def sandbox(atoll):
    from e2b import Sandbox

    box = Sandbox.create(timeout=120)
    yield box
    box.kill()
