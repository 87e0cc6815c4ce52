# shellcheck shell=bash disable=SC2154
# The slices of tpu_pod.sh: states, request, deletion. Sourced; uses its flags.

# ask ANSWER COMMAND...: runs a command whose output matters; a dry run prints it, and goes on as if ANSWER had come.
ask() {
  local answer=$1
  shift
  if [[ -n $dry_run ]]; then
    show "$@" >&3
    echo "$answer"
  else
    "$@"
  fi
}

queued() { ask "$1" gcloud compute tpus queued-resources "$2" "$name" --project="$project" --zone="$zone" "${@:3}"; }
vm() { ask "$1" gcloud compute tpus tpu-vm "$2" "${@:3}" --project="$project" --zone="$zone"; }
pause() { [[ -n $dry_run ]] || sleep "$poll"; }

# State of the queued resource; ABSENT if there is none, UNKNOWN if gcloud cannot tell. An argument is the ANSWER above.
resource_state() {
  local state
  if state=$(queued "${1-ACTIVE}" describe --format='value(state.state)' 2>"$scratch/error"); then
    echo "${state:-UNKNOWN}"
  elif grep -qi 'not[_ ]found' "$scratch/error"; then
    echo ABSENT
  else
    cat "$scratch/error" >&2
    echo UNKNOWN
  fi
}

# "NODE STATE" of each slice that is not READY; UNKNOWN if gcloud cannot tell.
unready_nodes() {
  local node state
  for node in "${nodes[@]}"; do
    state=$(vm READY describe "$node" --format='value(state)' 2>/dev/null) || state=UNKNOWN
    [[ $state == READY ]] || echo "$node ${state:-UNKNOWN}"
  done
}

create() {
  local flags=(--accelerator-type="$type" --runtime-version="$runtime")
  if ((node_count > 1)); then
    flags+=(--node-count="$node_count" --node-prefix="$name")
  else
    flags+=(--node-id="$name")
  fi
  [[ -z $spot ]] || flags+=(--spot)
  [[ -z $reserved ]] || flags+=(--reserved)
  [[ -z $internal_ips ]] || flags+=(--internal-ips)
  [[ -z $network ]] || flags+=(--network="$network")
  [[ -z $subnetwork ]] || flags+=(--subnetwork="$subnetwork")
  [[ -z $service_account ]] || flags+=(--service-account="$service_account")
  queued '' create "${flags[@]}" || bear "gcloud refused the queued resource $name"
}

delete() { queued '' delete --force --quiet || bear "gcloud did not delete the queued resource $name"; }

# bear MESSAGE: a failure ends the script, unless the program has run before: then everything was right once, and the
# failure may pass.
bear() {
  [[ -n ${begun-} ]] || give_up "$1"
  say "$1; trying again"
  return 1
}

# Returns when all slices are there. What was preempted is deleted and requested anew.
acquire() {
  local until=$((SECONDS + wait)) created='' state broken seen=''
  while :; do
    state=$(resource_state "${created:-ABSENT}") broken=''
    [[ $state != ACTIVE ]] || broken=$(unready_nodes)
    [[ "$state $broken" != "ACTIVE " ]] || return 0
    [[ $state$broken == "$seen" ]] || say "queued resource $name: $state${broken:+, but }${broken//$'\n'/, }"
    seen=$state$broken
    case $state:$broken in
      ABSENT:) create && created=ACTIVE || true ;;
      FAILED:)
        [[ -z $created ]] || bear "the request failed: $(queued '' describe --format='json(state)' | tr -s ' \n' ' ')" || true
        delete || true
        ;;
      SUSPENDED: | ACTIVE:*PREEMPTED* | ACTIVE:*TERMINATED*) delete || true ;;
    esac
    ((SECONDS < until)) || give_up "$name is $state after $wait s; run again to go on waiting, or delete the request"
    pause
  done
}

# What has happened to the slices, if they are not all there; empty if they are, and if gcloud cannot tell.
loss() {
  local state
  state=$(resource_state)
  case $state in
    ACTIVE) unready_nodes | grep -v ' UNKNOWN$' | paste -sd, || true ;;
    UNKNOWN) ;;
    *) echo "queued resource $state" ;;
  esac
}
