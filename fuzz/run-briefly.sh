#!/usr/bin/env bash
# Runs each fuzz target for SECONDS (10 if none are given), two at a time, from the seeds that are
# checked in. Builds with nightly if there is one. Writes below the target folder.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-10}
target=${CARGO_TARGET_DIR:-$PWD/../target}/fuzz
# Cargo-fuzz is told where to build; the outer setting would win over it.
unset CARGO_TARGET_DIR
mkdir -p "$target/corpus" "$target/artifacts"
# The guest's program is not run here, so none needs to be built.
: >"$target/no-guest"
export ATOLL_GUEST_BINARY=$target/no-guest

PATH=$(dirname "$(../scripts/tool.sh cargo-fuzz)"):$PATH
export PATH
if cargo +nightly --version >/dev/null 2>&1; then
  toolchain=(+nightly)
else
  toolchain=()
  export RUSTC_BOOTSTRAP=1
fi
# Without a sanitizer: nearly all of what is tested is safe Rust, and it builds several times faster.
cargo "${toolchain[@]}" fuzz build --fuzz-dir . --dev --sanitizer none --target-dir "$target"

built=$target/$(rustc -vV | sed -n 's/^host: //p')/debug
run() {
  mkdir -p "$target/corpus/$1"
  if "$built/$1" "$target/corpus/$1" "seeds/$1" -max_total_time="$seconds" -max_len=4096 \
    -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="$target/artifacts/$1-" >"$target/$1.log" 2>&1; then
    printf '%-16s %s runs\n' "$1" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$target/$1.log")"
  else
    tail -n 40 "$target/$1.log"
    printf '%s FAILED; what broke it is in %s\n' "$1" "$target/artifacts"
    return 1
  fi
}

failed=0
running=()
for name in $(sed -n 's/^name = "\(.*_.*\)"$/\1/p' Cargo.toml); do
  run "$name" &
  running+=($!)
  if [ ${#running[@]} -ge 2 ]; then
    wait "${running[0]}" || failed=1
    running=("${running[@]:1}")
  fi
done
for job in "${running[@]}"; do
  wait "$job" || failed=1
done
exit $failed
