#!/usr/bin/env bash
# Everything that must pass, step by step; the last line counts. Needs root.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
export CARGO_TARGET_DIR=$target
# The guest is built once: for the tests as it is shipped.
export ATOLL_GUEST_PROFILE=guest
mkdir -p "$target"
output=$(mktemp "$target/test-output.XXXXXX")
trap 'rm -f "$output"' EXIT
began=$SECONDS
tests=0
steps=0

# step NAME COMMAND…: runs it, and ends everything if it fails.
step() {
  local name=$1 start=$SECONDS
  shift
  printf '\n== %s\n' "$name"
  if ! "$@" 2>&1 | tee "$output"; then
    printf '\nFAILED: %s, after %d s\n' "$name" $((SECONDS - began))
    exit 1
  fi
  steps=$((steps + 1))
  printf '== %s: %d s\n' "$name" $((SECONDS - start))
}

# count PATTERN: adds up the numbers that the pattern's group finds in the last step's output.
count() {
  local number
  while read -r number; do
    tests=$((tests + number))
  done < <(sed -e 's/\x1b\[[0-9;]*m//g' "$output" | sed -nE "s/$1/\\1/p")
}

# What the mesh is held against, and no distribution has.
PATH=$(dirname "$(scripts/tool.sh boringtun-cli)"):$PATH
export PATH
step "format, lints, licences" scripts/lint.sh
if cargo nextest --version >/dev/null 2>&1; then
  step "unit and integration tests" cargo nextest run --workspace --lib --bins --tests --locked --no-fail-fast
  count '.*tests? run: ([0-9]+) passed.*'
else
  step "unit and integration tests" cargo test --workspace --locked --bins --lib --tests
  count '^test result: ok\. ([0-9]+) passed.*'
fi
step "examples in the documentation" cargo test --workspace --locked --doc
count '^test result: ok\. ([0-9]+) passed.*'
# As `make run` builds: so it finds all built.
unset ATOLL_GUEST_PROFILE
if [ -x fuzz/run-briefly.sh ]; then
  step "fuzzing, briefly" fuzz/run-briefly.sh
fi
if [ -x tests/run.sh ]; then
  step "the program for users" scripts/build.sh
  step "whole-system tests" tests/run.sh
  count '.*[= ]([0-9]+) passed.*'
  step "whole-system tests of microVMs" env ATOLL_TEST_DRIVER=qemu tests/run.sh states mesh/test_sandboxes.py
  count '.*[= ]([0-9]+) passed.*'
fi
printf '\nmake test: %d steps, %d tests passed, in %d s\n' "$steps" "$tests" $((SECONDS - began))
