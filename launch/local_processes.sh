#!/usr/bin/env bash
# Runs a config as several processes of this machine that work as one, the way hosts of a pod do.
#   launch/local_processes.sh PROCESSES CONFIG WORKDIR [--config.KEY=VALUE ...]
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,3p' "$0" >&2; exit 2; }
count=$1 config=$2 workdir=$3
shift 3
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
for ((i = 0; i < count; i++)); do
  python -m qrpo_jax.main --coordinator="127.0.0.1:$port" --processes="$count" --process="$i" \
    --config="$config" --workdir="$workdir" "$@" &
done
# The first process to fail decides; the others would wait for it.
for ((i = 0; i < count; i++)); do wait -n; done
