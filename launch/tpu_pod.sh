#!/usr/bin/env bash
# Runs a config on every host of a TPU slice, or of several slices, and keeps it going through preemptions.
#
#   launch/tpu_pod.sh run --name=NAME --project=PROJECT --zone=ZONE --type=v5p-128 --runtime=v2-alpha-tpuv5 --spot \
#     --config=tulu3_8b --workdir=gs://BUCKET/runs/tulu3_8b [--config.KEY=VALUE ...]
#   launch/tpu_pod.sh follow|stop|delete --name=NAME --project=PROJECT --zone=ZONE
#
# run      creates the queued resource NAME or uses the one that is there, waits until it is ACTIVE, copies the commit
#          that is checked out to all hosts, installs launch/locks/tpu.txt there, starts the program and follows it.
#          After a preemption, and after exit status 75, it does so again; the program resumes. Ends with the program's
#          status. Ctrl-C and a lost connection leave the program running; the same command follows it again.
# follow   follows a program that runs, and starts nothing
# stop     sends SIGTERM to the program on all hosts: it saves and leaves, and is not started again
# delete   gives the slices back, whatever runs on them
#
# --name=NAME            of the queued resource and its slice (slices: NAME-0, NAME-1, ...)
# --project, --zone      of Google Cloud
# --type, --runtime      accelerator type and software version, as gcloud names them; for `run`
# --node-count=N         slices that work as one (1)
# --spot, --reserved     capacity; on demand without either
# --network, --subnetwork, --service-account, --internal-ips   passed to gcloud
# --cache=DIR            for compiled programs, such as gs://BUCKET/cache: a new slice does not compile again
# --wait=SECONDS         for the slices to become ACTIVE (172800: two days)
# --patience=SECONDS     for a host that does not answer (1800)
# --poll=SECONDS         between looks at hosts and slices (15)
# --retries=N            new starts after preemptions and status 75 (1000)
# --allow-dirty          ship the commit although the checkout has changes that are not in it
# --delete-when-done     give the slices back once the program has ended with status 0
# --dry-run              print the commands of an undisturbed first run and run none
#
# A flag NAME may be given as QRPO_NAME in the environment: QRPO_PROJECT, QRPO_ZONE. Hosts keep their log in
# ~/qrpo/log; a spot slice loses it with its disks. Nothing is mounted: the work directory is an address of an object
# store, or a path that every host sees.

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
name='' project='' zone='' type='' runtime='' node_count=1 network='' subnetwork='' service_account=''
spot='' reserved='' internal_ips='' allow_dirty='' delete_when_done='' wait=172800 patience=1800 poll=15 retries=1000 cache=''
verb=${1-}
case $verb in
  run | follow | stop | delete) shift ;;
  --help | -h) usage; exit ;;
  *) mistake "run, follow, stop or delete? (--help explains them)" ;;
esac
read_flags "name project zone type runtime node-count network subnetwork service-account cache wait patience poll \
retries" "spot reserved internal-ips allow-dirty delete-when-done" "$@"
need name project zone
need_count node_count wait patience poll retries
need_command gcloud
[[ -z $spot || -z $reserved ]] || mistake "--spot and --reserved exclude each other"

# shellcheck source-path=SCRIPTDIR source=tpu/slices.sh
. "$root/launch/tpu/slices.sh"
# shellcheck source-path=SCRIPTDIR source=tpu/hosts.sh
. "$root/launch/tpu/hosts.sh"

nodes=("$name")
if ((node_count > 1)); then
  nodes=()
  for ((i = 0; i < node_count; i++)); do nodes+=("$name-$i"); done
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'say "no longer following; the program goes on, and follow, stop or the same command finds it"; exit 130' INT
exec 3>&1  # where a dry run prints commands

# Starts the program on all hosts, unless it runs. Fails if the slices are lost meanwhile.
begin() {
  count_hosts || return 1
  # On new hosts there is no script to answer.
  if on_hosts idle look >/dev/null && grep -q ' running' "$scratch/states"; then
    say "the program runs already"
    begun=yes
    return
  fi
  insist "installing" install || return 1
  insist "starting" on_hosts running start "JAX_COMPILATION_CACHE_DIR=$cache" "${program[@]}" || return 1
  begun=yes
  say "started commit ${commit:0:12} on $(grep -c . "$scratch/states") hosts; their log is ~/qrpo/log"
}

run() {
  local try status
  need type runtime
  need_program
  commit=$(clean_commit)
  act git -C "$root" archive --format=tar.gz --output="$scratch/qrpo.tar.gz" "$commit"
  for ((try = 0; try <= retries; try++)); do
    acquire
    status=75
    if begin && follow; then status=$(ended_with); fi
    [[ $status == 75 ]] || finish "$status"
    say "interrupted; starting again"
    pause
  done
  give_up "interrupted more than $retries times"
}

# finish STATUS: ends as the program did.
finish() {
  case $1 in
    0)
      say "done"
      [[ -z $delete_when_done ]] || delete
      [[ -n $delete_when_done ]] || say "the slices are still held; to give them back: $0 delete --name=$name ..."
      ;;
    stopped)
      say "stopped on request; run goes on"
      exit 75
      ;;
    *) say "ended with status $1; see the lines above" ;;
  esac
  exit "$1"
}

case $verb in
  run) run ;;
  follow)
    count_hosts
    follow || exit 75
    finish "$(ended_with)"
    ;;
  stop)
    count_hosts
    on_hosts stopped stop || give_up "no answer from $(silent_hosts)"
    ;;
  delete)
    if [[ $(resource_state) == ABSENT ]]; then
      say "there is no queued resource $name"
    else
      delete
    fi
    ;;
esac
