"""What tests of the mesh share."""

import os
import shutil

import pytest
from mesh_world import World

from harness.atoll import WORK


@pytest.fixture
def world():
    folder = os.path.join(WORK, f"mesh-{os.getpid()}")
    os.makedirs(folder)
    made = World(folder)
    yield made
    made.end()
    shutil.rmtree(folder, ignore_errors=True)
