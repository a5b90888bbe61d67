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
# Node.js and npm of the environment come first.
export PATH=$venv/bin:$PATH
if ! cmp -s js/package-lock.json js/node_modules/.fetched; then
  (cd js && npm ci --no-audit --no-fund --loglevel=error >/dev/null)
  cp js/package-lock.json js/node_modules/.fetched
fi
if [ $# -gt 0 ]; then
  exec "$venv/bin/pytest" "$@"
fi
# The tests of the mesh wait most of the time, for what is cut off and comes back: they run beside the rest.
beside=$target/atoll-test/mesh-tests.log
"$venv/bin/pytest" -p no:cacheprovider mesh >"$beside" 2>&1 &
mesh=$!
trap 'kill "$mesh" 2>/dev/null || true' EXIT
status=0
"$venv/bin/pytest" --ignore=mesh || status=$?
wait "$mesh" || status=$?
trap - EXIT
cat "$beside"
exit "$status"
