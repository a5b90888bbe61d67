#!/usr/bin/env bash
# Measures Atoll side by side with its peers and prints one table; results go to bench/out/.
# Usage: bench/run.sh [flags of the bench program, see --help]. Needs root and Debian's runc.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
cargo build --release -p atoll -p bench
exec "$target/release/bench" --atoll "$target/release/atoll" --data-dir "$target/atoll-bench" "$@"
