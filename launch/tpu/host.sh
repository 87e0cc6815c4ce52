#!/usr/bin/env bash
# One host's part of tpu_pod.sh, which calls it over ssh. Each verb may be repeated.
#
#   host.sh look|install|news|stop|kill NODE
#   host.sh start NODE VARIABLE=VALUE PROGRAM-FLAGS...
#
# The last line of an answer is "@NODE WORKER STATE". STATE is installed, failed (to install), running, idle (nothing was
# started), lost (the host was restarted, or the program was killed together with this script), stopped, or the program's
# exit status.

set -euo pipefail
verb=$1 node=$2
shift 2
here=$HOME/qrpo
code=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
venv=$here/venv-$(cat "$code"/launch/locks/*.txt | sha256sum | cut -c1-16)
# The number of this host in its slice, which also jax.distributed reads.
worker=$(curl -sf --retry 3 -H 'Metadata-Flavor: Google' \
  http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)
mkdir -p "$here"

# $here/pid has the processes of the program and of the script that waits for it, and the boot that they belong to. The
# script ends after it has written the program's status.
alive() {
  local pid script boot
  read -r pid script boot 2>/dev/null <"$here/pid" || return 1
  [[ $boot == "$(cat /proc/sys/kernel/random/boot_id)" ]] || return 1
  runs "$script" || runs "$pid"
}

# Writes $here/pid at once, for a reader at any moment.
remember() {
  echo "$1 $$ $(cat /proc/sys/kernel/random/boot_id)" >"$here/pid.new"
  mv "$here/pid.new" "$here/pid"
}

# Whether a process is there and has not ended; one that nobody has waited for yet is a zombie.
runs() { grep -q '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$1/status" 2>/dev/null; }

state() {
  if [[ -e $here/status ]]; then
    cat "$here/status"
  elif alive; then
    echo running
  elif [[ -e $here/pid ]]; then
    echo lost
  else
    echo idle
  fi
}

# The Python of TPU images is older than 3.11; uv brings one. What is there already is not installed again.
install() {
  local uv=$here/uv/bin/uv locks=$code/launch/locks
  [[ ! -e $venv/complete ]] || return 0
  rm -rf "$venv" &&
    python3 -m pip install --quiet --require-hashes --upgrade --target="$here/uv" -r "$locks/uv.txt" &&
    "$uv" venv --quiet --python=3.13 "$venv" &&
    "$uv" pip install --quiet --python="$venv/bin/python" --require-hashes -r "$locks/tpu.txt" &&
    touch "$venv/complete"
}

start() {
  [[ $(state) != running ]] || return 0
  rm -f "$here/status" "$here/pid"
  # Detached: it outlives this connection.
  setsid nohup bash "${BASH_SOURCE[0]}" program "$node" "$@" >>"$here/log" 2>&1 </dev/null &
  until [[ -e $here/pid ]]; do sleep 0.1; done
}

# Runs the program, which gets its signals from `stop` and from a machine that shuts down; this only waits for it.
program() {
  local status
  trap : TERM HUP INT
  cd "$code"
  ulimit -n 65536 2>/dev/null || true
  echo "--- $(date -u +%FT%TZ) $node worker $worker, commit $(basename "$code") ---"
  [[ -z ${1#*=} ]] || export "${1?}"
  remember "$$"  # in case the program takes this script with it at once
  "$venv/bin/python" -m qrpo_jax.main --distributed "${@:2}" &
  remember "$!"
  while :; do
    wait "$!" && status=0 || status=$?
    kill -0 "$!" 2>/dev/null || break
  done
  printf '\n--- exit status %s ---\n' "$status"
  echo "$status" >"$here/status.new"
  [[ ! -e $here/stopped ]] || echo stopped >"$here/status.new"
  mv "$here/status.new" "$here/status"
}

# The lines of the log that are news: all of worker 0. Of the others, those from the first one on that looks like an error,
# and the last ones of a program that has failed.
news() {
  local from until lines
  from=$(cat "$here/told" 2>/dev/null || echo 0)
  until=$(cat "$here/log" 2>/dev/null | wc -l)
  ((until > from)) || return 0
  lines=$(sed -n "$((from + 1)),${until}p" "$here/log")
  if [[ $worker != 0 && $now =~ ^([1-9][0-9]*|lost)$ ]]; then
    lines=$(tail -n 50 <<<"$lines")
  elif [[ $worker != 0 ]]; then
    lines=$(sed -n '/[Ee]rror\|[Ff]atal\|Traceback\|[Ww]arning/,$p' <<<"$lines")
    [[ -n $lines ]] || return 0
  fi
  sed "s/^/[$node\/$worker] /" <<<"$lines"
  echo "$until" >"$here/told"
}

# Sends the program a signal.
signal() {
  local pid
  ! alive || { read -r pid _ <"$here/pid" && kill "-$1" "$pid"; }
}

now=$(state)
case $verb in
  program)
    program "$@"
    exit
    ;;
  look) ;;
  install) if install; then now=installed; else now=failed; fi ;;
  start)
    rm -f "$here/stopped"
    start "$@"
    now=$(state)
    ;;
  news) news ;;
  stop)
    touch "$here/stopped"
    signal TERM
    ;;
  kill) signal KILL ;;
  *)
    echo "unknown verb $verb" >&2
    exit 2
    ;;
esac
printf '@%s %s %s\n' "$node" "$worker" "$now"
