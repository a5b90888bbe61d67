#!/usr/bin/env bash
# Builds the program for users.
set -euo pipefail
cd "$(dirname "$0")/.."
exec cargo build --release --locked -p atoll
