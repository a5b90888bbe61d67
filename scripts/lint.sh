#!/usr/bin/env bash
# Format, lints, licences, the length of files, and that each promise has its test.
set -euo pipefail
cd "$(dirname "$0")/.."

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

deny=$(scripts/tool.sh cargo-deny)
"$deny" --log-level error check bans licenses sources
# The list of known vulnerabilities is fetched from a Git host, which not every machine reaches.
if timeout 60 "$deny" --log-level error fetch db >/dev/null 2>&1; then
  "$deny" --log-level error check advisories
else
  echo "advisories: not checked, as their database cannot be reached from here"
fi
