#!/usr/bin/env bash
# Makes a Python environment with the official SDK, pinned, and prints its interpreter. A second
# call fetches nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
venv=$target/atoll-run/venv
wanted=tests/sdk/requirements.txt
if ! cmp -s "$wanted" "$venv/requirements.txt" || ! "$venv/bin/python" -c 'import e2b' 2>/dev/null; then
  echo "fetching the official SDK: $(grep -v '^#' "$wanted" | tr '\n' ' ')" >&2
  rm -rf "$venv"
  python3 -m venv "$venv" >&2
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$wanted" >&2
  cp "$wanted" "$venv/requirements.txt"
fi
echo "$venv/bin/python"
