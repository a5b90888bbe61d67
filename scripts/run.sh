#!/usr/bin/env bash
# Starts Atoll, shows the tour, and serves until Ctrl-C; with ONCE=1 it ends after the tour.
# ATOLL_DATA_DIR and ATOLL_LISTEN say where, ATOLL_BINARY what; all have defaults.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
atoll=${ATOLL_BINARY:-$target/release/atoll}
export ATOLL_DATA_DIR=${ATOLL_DATA_DIR:-$target/atoll-run/data}
once=${ONCE:-}
if [ -n "$once" ]; then
  listen=${ATOLL_LISTEN:-127.0.0.1:0}
else
  listen=${ATOLL_LISTEN:-127.0.0.1:3000}
fi
mkdir -p "$target/atoll-run" "$ATOLL_DATA_DIR"
python=$(scripts/venv.sh)

# Its own session, so that Ctrl-C reaches it once: through this script.
ready=$(mktemp "$target/atoll-run/ready.XXXXXX")
setsid "$atoll" up --listen "$listen" >"$ready" &
atoll_pid=$!

# stop STATUS: ends Atoll in good order and then this script.
stop() {
  trap '' INT TERM
  [ -z "${tour:-}" ] || kill "$tour" 2>/dev/null || true
  kill -TERM "$atoll_pid" 2>/dev/null || true
  wait "$atoll_pid" || true
  rm -f "$ready"
  exit "$1"
}
trap 'stop 0' INT TERM

url=
while [ -z "$url" ]; do
  if ! kill -0 "$atoll_pid" 2>/dev/null; then
    rm -f "$ready"
    wait "$atoll_pid"
    exit 1
  fi
  url=$(sed -n 's/^ready //p' "$ready")
  [ -n "$url" ] || sleep 0.05
done

# In the background, so that a signal is answered at once and not when the tour is over.
E2B_API_URL=$url E2B_SANDBOX_URL=$url E2B_API_KEY=${ATOLL_API_KEY:-$(cat "$ATOLL_DATA_DIR/api-key")} \
  "$python" scripts/tour.py "$atoll" &
tour=$!
status=0
wait "$tour" || status=$?
if [ "$status" != 0 ] || [ -n "$once" ]; then
  stop "$status"
fi
cat >&2 <<END

Atoll serves at $url until Ctrl-C. In another terminal:
  export ATOLL_DATA_DIR=$ATOLL_DATA_DIR
  $atoll run base -t
END
status=0
wait "$atoll_pid" || status=$?
rm -f "$ready"
exit "$status"
