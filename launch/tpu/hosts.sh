# shellcheck shell=bash disable=SC2154
# The hosts of tpu_pod.sh: copies the commit, starts the program and follows it on all of them. Sourced; uses its flags.

# on_hosts ANSWER VERB ARGUMENTS...: runs a verb of tpu/host.sh on all hosts, prints what they say, and leaves a line
# "NODE WORKER STATE" of each in $scratch/states. Fails if a host has not answered.
on_hosts() {
  local answer=$1 verb=$2 node command
  shift 2
  command=$(printf ' %q' "$@")
  (($#)) || command=''
  for node in "${nodes[@]}"; do
    on_node "@$node 0 $answer" "$node" "bash qrpo/code/launch/tpu/host.sh $verb $node$command" \
      >"$scratch/$node.said" 2>"$scratch/$node.error" &
    [[ -z $dry_run ]] || wait
  done
  wait
  cat "$scratch"/*.said "$scratch"/*/*.log >"$scratch/all" 2>/dev/null || true
  grep -v '^@' "$scratch/all" || true
  sed -n 's/^@//p' "$scratch/all" >"$scratch/states"
  [[ -z $(silent_hosts) ]]
}

# on_node ANSWER NODE COMMAND: runs a shell command on all hosts of a slice. What they print goes to a file each, so that
# their lines do not mix.
on_node() {
  rm -rf "${scratch:?}/$2"
  mkdir "$scratch/$2"
  vm "$1" ssh "$2" --quiet --worker=all --ssh-flag=-oConnectTimeout=30 --ssh-flag=-oServerAliveInterval=20 \
    --output-directory="$scratch/$2" --command="$3" </dev/null
}

count_hosts() {
  local node
  for node in "${nodes[@]}"; do
    vm 10.0.0.1 describe "$node" --flatten='networkEndpoints[]' --format='value(networkEndpoints.ipAddress)' \
      >"$scratch/$node.hosts" || bear "gcloud cannot list the hosts of $node" || return 1
  done
}

# The hosts without a line in $scratch/states.
silent_hosts() {
  local node worker silent=()
  for node in "${nodes[@]}"; do
    for ((worker = 0; worker < $(grep -c . "$scratch/$node.hosts"); worker++)); do
      grep -q "^$node $worker " "$scratch/states" || silent+=("$node worker $worker")
    done
  done
  local IFS=,
  echo "${silent[*]-}"
}

# insist WHAT COMMAND...: tries a step until every host has done it. New hosts refuse connections for a while. Fails if the
# slices are lost.
insist() {
  local silence=0 what=$1
  shift
  until "$@"; do
    silence=$((silence + poll))
    ((silence < patience)) || give_up "$what: no answer from $(silent_hosts) for $silence s: $(last_error)"
    ((silence > poll)) || say "$what: no answer from $(silent_hosts); trying again"
    pause
    [[ -z $(loss) ]] || return 1
  done
  ! grep -q ' failed$' "$scratch/states" ||
    give_up "$what failed on $(sed -n 's/ failed$//p' "$scratch/states" | paste -sd,): $(last_error)"
}

last_error() { cat "$scratch"/*.error "$scratch"/*/*.log 2>/dev/null | grep '^[^@]' | tail -n 1; }

# Copies the commit to all hosts and installs the locked requirements there. A host that missed a step does not answer.
install() {
  local node unpack="mkdir -p qrpo/$commit && tar -xzf qrpo.tar.gz -C qrpo/$commit && ln -sfn $commit qrpo/code"
  for node in "${nodes[@]}"; do
    vm '' scp "$scratch/qrpo.tar.gz" "$node:qrpo.tar.gz" --quiet --worker=all </dev/null || true
    on_node '' "$node" "$unpack" || true
  done 2>"$scratch/0copy.error"
  on_hosts installed install
}

# Follows the program until no host runs it. Fails if the slices are lost.
follow() {
  local silence=0 uneven=0 what
  until on_hosts 0 news && ! grep -q ' running$' "$scratch/states"; do
    if [[ -z $(silent_hosts) ]]; then
      silence=0
      ! grep -qv ' running$' "$scratch/states" || uneven=$((uneven + poll))
      # They leave together within a minute; what is left after that hangs.
      ((uneven < patience)) || { say "some hosts have ended and others hang; killing them" && on_hosts running kill; }
    else
      silence=$((silence + poll))
      what=$(loss)
      [[ -z $what ]] || { say "lost: $what" && return 1; }
      ((silence < patience)) || give_up "no answer from $(silent_hosts) for $silence s; the other hosts still run"
    fi
    pause
  done
}

# The status of a program that no host runs: 0, 1, 2, 75 to try again, or stopped.
ended_with() {
  local what states
  states=" $(cut -d' ' -f3 "$scratch/states" | sort -u | tr '\n' ' ')"
  what=$(loss)
  if [[ $states == ' 0 ' ]]; then
    echo 0
  elif [[ $states == *' stopped '* ]]; then
    echo stopped
  elif [[ -n $what || $states == *' 75 '* || $states == *' lost '* ]]; then
    echo 75
  elif [[ $states == *' 2 '* ]]; then
    echo 2
  else
    echo 1
  fi
}
