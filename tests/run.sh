#!/usr/bin/env bash
# Runs the whole-system tests: the real program, the official SDKs, attacks, crashes.
# Usage: tests/run.sh [pytest arguments]. Needs root, the release binary and Python 3.
set -euo pipefail
cd "$(dirname "$0")"
target=${CARGO_TARGET_DIR:-$(cd .. && pwd)/target}
export CARGO_TARGET_DIR=$target
venv=$target/atoll-test/venv
mkdir -p "$target/atoll-test"
if [ ! -x "$venv/bin/pytest" ] || ! cmp -s requirements.txt "$venv/requirements.txt"; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt
  cp requirements.txt "$venv/requirements.txt"
fi
if [ ! -d js/node_modules/e2b ]; then
  (cd js && npm ci --no-audit --no-fund --silent)
fi
exec "$venv/bin/pytest" "$@"
