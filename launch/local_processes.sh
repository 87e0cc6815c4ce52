#!/usr/bin/env bash
# Runs a config as several processes of this machine that work as one, the way hosts of a pod do.
#
#   launch/local_processes.sh --count=2 --config=quickstart --workdir=runs/two [--config.KEY=VALUE ...]
#
# --count=N      processes (2)
# --python=PATH  interpreter with the requirements installed (python3)
# --dry-run      print the commands and run none
#
# Lines begin with the index of their process. The exit status is that of the first one that fails; 75 means that the same command
# goes on.

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
count=2 python=python3
read_flags "count python" "" "$@"
need_program
need_count count

# Process 0 needs a port that the others know before it listens. This holds one: bound with SO_REUSEPORT and not
# listening, so that no other program is given it and process 0, which uses SO_REUSEPORT too, can listen on it.
hold_a_port='
import socket, sys
held = socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET)
if held.family == socket.AF_INET6:
    held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
held.bind(("", 0))
print(held.getsockname()[1], flush=True)
sys.stdin.read()
'

# One process, with its index before each line; the status is that of the process.
start() {
  local index=$1
  "$python" -m qrpo_jax.main --distributed --coordinator="127.0.0.1:$port" --processes="$count" --process="$index" \
    "${program[@]}" > >(sed -u "s/^/[$index] /") 2> >(sed -u "s/^/[$index] /" >&2) </dev/null &
}

cd "$root"
if [[ -n $dry_run ]]; then
  for ((i = 0; i < count; i++)); do
    show "$python" -m qrpo_jax.main --distributed --coordinator=127.0.0.1:PORT --processes="$count" --process="$i" \
      "${program[@]}"
  done
  exit
fi

coproc HOLDER { exec "$python" -c "$hold_a_port"; }
read -r -u "${HOLDER[0]}" port || give_up "$python cannot hold a port"
pids=()
for ((i = 0; i < count; i++)); do
  start "$i"
  pids+=("$!")
done
# A signal is passed on, and the processes save and leave. In the background they ignore Ctrl-C, so they get SIGTERM.
signalled='' status=0
# shellcheck disable=SC2329  # the traps call it
pass_on() {
  signalled=yes
  kill -TERM "${pids[@]}" 2>/dev/null || true
}
trap pass_on TERM HUP
trap 'status=130; pass_on' INT

for pid in "${pids[@]}"; do
  while :; do
    signalled=''
    wait "$pid" && code=0 || code=$?
    [[ -n $signalled ]] || break  # else the signal ended the wait, and not the process
  done
  ((status)) || status=$code
done
exit "$status"
