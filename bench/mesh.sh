#!/usr/bin/env bash
# Measures the mesh: its data plane beside wireguard-go, with and without a device and over a long way; how soon a node that joins reaches others;
# and the coordinator with ten thousand simulated nodes. Prints one table; a failure at the end if a target was missed.
# Usage: bench/mesh.sh [throughput|distance|joining|coordinator]... Needs root, and what scripts/setup.sh bench installs.
# ATOLL_PROGRAM=PATH takes a program that was built already.
set -uo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
programs=("$@")
[ ${#programs[@]} -gt 0 ] || programs=(throughput distance joining coordinator)

cargo build --release --locked -p mesh --examples || exit 1
atoll=${ATOLL_PROGRAM:-}
if [ -z "$atoll" ]; then
  atoll=$CARGO_TARGET_DIR/release/atoll
  cargo build --release --locked -p atoll || exit 1
fi

verdicts=$(mktemp)
trap 'rm -f "$verdicts"' EXIT
export ATOLL_VERDICTS=$verdicts
failed=0
for program in "${programs[@]}"; do
  case $program in
    throughput) runs=("") ;;
    distance) runs=("" "--flows 4") ;;
    joining | coordinator) runs=("--atoll $atoll") ;;
    *)
      echo "error: $program: one of throughput, distance, joining, coordinator" >&2
      exit 2
      ;;
  esac
  for options in "${runs[@]}"; do
    printf '\n== %s %s\n' "$program" "$options"
    # shellcheck disable=SC2086 # Each word is an argument.
    "$CARGO_TARGET_DIR/release/examples/$program" $options || {
      printf '%s %s\t\t\tFAILED\t\n' "$program" "$options" >>"$verdicts"
      failed=1
    }
  done
done

printf '\n%-60s %16s %16s  %s\n' what target figure met
awk -F '\t' '{ printf "%-60s %16s %16s  %-7s %s\n", $1, $2, $3, $4, $5 }' "$verdicts"
grep -q 'NOT MET' "$verdicts" && failed=1
exit $failed
