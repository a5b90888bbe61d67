#!/usr/bin/env bash
# Format, lints, licences, the length of files, and that each promise has its test.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}

cargo fmt --all --check
cargo clippy --workspace --all-targets --locked -- -D warnings

# A file is one idea; none is longer than 800 lines.
long=$(git ls-files -- '*.rs' '*.py' '*.sh' '*.mjs' '*.md' '*.toml' | while read -r file; do
  [ -f "$file" ] || continue
  lines=$(wc -l <"$file")
  [ "$lines" -le 800 ] || echo "$file: $lines lines"
done)
if [ -n "$long" ]; then
  printf 'error: longer than 800 lines:\n%s\n' "$long" >&2
  exit 1
fi

# Every promise has tests, and the tests that it names exist.
scripts/check-specification.sh

# cargo-deny is kept beside what is built. Unoptimised, as it is built faster than it would gain.
deny=$(command -v cargo-deny || echo "$target/tools/bin/cargo-deny")
if [ ! -x "$deny" ]; then
  echo "installing cargo-deny" >&2
  CARGO_TARGET_DIR=$target/tools/build CARGO_PROFILE_DEV_DEBUG=0 \
    cargo install --quiet --locked --debug --root "$target/tools" cargo-deny
  rm -rf "$target/tools/build"
fi
"$deny" --log-level error check bans licenses sources
# The list of known vulnerabilities is fetched from a Git host, which not every machine reaches.
if timeout 60 "$deny" --log-level error fetch db >/dev/null 2>&1; then
  "$deny" --log-level error check advisories
else
  echo "advisories: not checked, as their database cannot be reached from here"
fi
