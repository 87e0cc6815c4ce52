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

# A free port, below those that systems give to programs that ask for any.
free_port='
import random, socket
while True:
    port = random.randrange(20000, 30000)
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)):
            break
print(port)
'

# run_processes PORT: starts all and waits for them; sets `status` to that of the first one that failed.
run_processes() {
  local i pid code
  pids=() status=0
  rm -f "$scratch"/*
  for ((i = 0; i < count; i++)); do
    "${command[@]}" --coordinator="127.0.0.1:$1" --processes="$count" --process="$i" "${program[@]}" </dev/null \
      > >(sed -u "s/^/[$i] /") 2> >(tee "$scratch/$i" | sed -u "s/^/[$i] /" >&2; touch "$scratch/$i.whole") &
    pids+=("$!")
  done
  for pid in "${pids[@]}"; do
    while :; do
      signalled=''
      wait "$pid" && code=0 || code=$?
      [[ -n $signalled ]] || break  # else the signal ended the wait, and not the process
    done
    ((status)) || status=$code
    # Another program took the port first. The others would wait for process 0.
    if [[ $pid == "${pids[0]}" ]] && port_taken; then kill "${pids[@]:1}" 2>/dev/null || true; fi
  done
  for ((i = 0; i < count; i++)); do printed "$i"; done
}

port_taken() {
  ((status == 2)) || return 1
  printed 0
  grep -q 'cannot listen at port' "$scratch/0"
}

# printed PROCESS: waits until its errors are printed; they are still on their way when it has ended.
printed() {
  local i
  for ((i = 0; i < 100; i++)); do
    [[ ! -e $scratch/$1.whole ]] || return 0
    sleep 0.1
  done
}

# Processes save and leave at a signal. In the background they ignore Ctrl-C, so they get SIGTERM.
# shellcheck disable=SC2329  # the traps call it
pass_on() {
  signalled=$1
  kill -TERM "${pids[@]}" 2>/dev/null || true
}

cd "$root"
command=("$python" -m qrpo_jax.main --distributed)
if [[ -n $dry_run ]]; then
  for ((i = 0; i < count; i++)); do
    show "${command[@]}" --coordinator=127.0.0.1:PORT --processes="$count" --process="$i" "${program[@]}"
  done
  exit
fi

need_command "$python"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch" || true' EXIT
pids=() signalled='' interrupted=''
trap 'pass_on TERM' TERM HUP
trap 'interrupted=yes; pass_on INT' INT
for _ in {1..5}; do
  run_processes "$("$python" -c "$free_port")"
  port_taken || break
done
[[ -z $interrupted ]] || exit 130
exit "$status"
