#!/usr/bin/env bash
# What must hold however often it is done, with microVMs: cycles of pause and resume, kills at random
# moments, states made and deleted. Usage: [CYCLES=N] [KILLS=N] [OBJECTS=N] scripts/soak.sh. Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."
export ATOLL_TEST_DRIVER=qemu
export ATOLL_CYCLES=${CYCLES:-10000} ATOLL_KILLS=${KILLS:-200} ATOLL_OBJECTS=${OBJECTS:-50}
exec tests/run.sh -s states/test_garbage.py states/test_kills.py states/test_cycles.py
