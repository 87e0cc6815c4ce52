#!/usr/bin/env bash
# Runs a config on TPU slices of a GKE cluster, as a JobSet, or as shards in an indexed Job.
#
#   launch/gke.sh run --name=NAME --image=IMAGE --accelerator=tpu-v5p-slice --topology=4x4x4 \
#     --config=tulu3_8b --workdir=gs://BUCKET/runs/tulu3_8b [--config.KEY=VALUE ...]
#   for stage in sample score reference; do
#     launch/gke.sh run --shards=16 --name=NAME-$stage --image=IMAGE --accelerator=tpu-v5-lite-podslice --topology=2x4 \
#       --chips=8 --config=tulu3_8b --workdir=gs://BUCKET/runs/tulu3_8b
#   done
#   launch/gke.sh follow|delete --name=NAME [--shards=N]
#
# run      submits gke_jobset.yaml, or gke_shards.yaml with --shards, and follows it. The cluster starts it again after a
#          preemption and after status 75; the program resumes. A job of that name that runs is followed, and one that
#          has failed is replaced. Ctrl-C leaves it running.
# follow   follows a job that was submitted
# delete   ends it: the pods get SIGTERM, save and leave
#
# A shard ends where it would need the work of the others, so there is one job for each stage that splits.
#
# --image=IMAGE            built with launch/image.sh
# --accelerator, --topology   of a node pool: cloud.google.com/gke-tpu-accelerator and gke-tpu-topology
# --chips=N                chips of a host (4)
# --node-count=N           slices that work as one (1)
# --shards=N               independent programs --shard=0/N to N-1/N, each on one host
# --parallelism=N          shards at the same time (all)
# --spot, --reservation=NAME   capacity; on demand without either
# --namespace=NAME         (default)
# --service-account=NAME   of Kubernetes, with access to the bucket (default)
# --queue=NAME             a LocalQueue of Kueue
# --context=NAME           of kubectl
# --cache=DIR              for compiled programs, such as gs://BUCKET/cache: a new pod does not compile again
# --host-path=DIR          a folder of each node, at the same place in its pod, for checkpoints.local_directory
# --max-restarts=N         restarts after other failures (3)
# --grace=SECONDS          between SIGTERM and SIGKILL (300)
# --wait=SECONDS           for all pods to run (86400)
# --poll=SECONDS           between looks (15)
# --dry-run                print the manifest and the commands of an undisturbed run, and run none
#
# A flag NAME may be given as QRPO_NAME in the environment.

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
name='' image='' accelerator='' topology='' chips=4 node_count=1 shards='' parallelism='' spot='' reservation=''
namespace=default service_account=default queue='' context='' max_restarts=3 grace=300 wait=86400 poll=15 cache='' host_path=''
verb=${1-}
case $verb in
  run | follow | delete) shift ;;
  --help | -h) usage; exit ;;
  *) mistake "run, follow or delete? (--help explains them)" ;;
esac
read_flags "name image accelerator topology chips node-count shards parallelism reservation namespace service-account \
queue context cache host-path max-restarts grace wait poll" "spot" "$@"
need name
need_count chips node_count max_restarts grace wait poll
need_command kubectl
[[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
  mistake "--name=$name; allowed: up to 40 of a-z, 0-9 and -, beginning with a letter"
[[ -z $host_path || $host_path == /* ]] || mistake "--host-path=$host_path; a path that begins with / is needed"
[[ -z $host_path || -z $shards ]] || mistake "--host-path and --shards exclude each other: shards have no checkpoints"
[[ -z $spot || -z $reservation ]] || mistake "--spot and --reservation exclude each other"

kubectl_=(kubectl ${context:+"--context=$context"} "--namespace=$namespace")
if [[ -n $shards ]]; then
  need_count shards
  kind=job label=batch.kubernetes.io/job-name=$name hosts=1 pods=$shards
  ended='{.status.conditions[?(@.status=="True")].type}'
else
  kind=jobset label=jobset.sigs.k8s.io/jobset-name=$name
  ended='{.status.terminalState}'
fi

# The manifest. ${NAME} in a template stands for the variable NAME of this function; a line whose value is empty goes.
# shellcheck disable=SC2034  # the templates use them
manifest() {
  local NAME=$name NAMESPACE=$namespace IMAGE=$image ACCELERATOR=$accelerator TOPOLOGY=$topology CHIPS=$chips \
    NODE_COUNT=$node_count HOSTS=$hosts SHARDS=$shards PARALLELISM=${parallelism:-$shards} GRACE=$grace \
    SERVICE_ACCOUNT=$service_account MAX_RESTARTS=$max_restarts LABELS='' CAPACITY='' ENVIRONMENT='' VOLUMES='' MOUNTS='' ARGUMENTS line filled key
  [[ -z $queue ]] || LABELS="labels: {kueue.x-k8s.io/queue-name: $queue}"
  [[ -z $spot ]] || CAPACITY='cloud.google.com/gke-spot: "true"'
  [[ -z $reservation ]] || CAPACITY="cloud.google.com/reservation-name: $reservation"
  [[ -z $cache ]] || ENVIRONMENT="env: [{name: JAX_COMPILATION_CACHE_DIR, value: \"$cache\"}]"
  if [[ -n $host_path ]]; then
    VOLUMES="volumes: [{name: host, hostPath: {path: \"$host_path\", type: DirectoryOrCreate}}]"
    MOUNTS="volumeMounts: [{name: host, mountPath: \"$host_path\"}]"
  fi
  if [[ -n $shards ]]; then
    ARGUMENTS=$(json_list "${program[@]}")
    # Kubernetes replaces $(JOB_COMPLETION_INDEX) in arguments by the index of the pod.
    ARGUMENTS="${ARGUMENTS%]}, \"--shard=\$(JOB_COMPLETION_INDEX)/$shards\"]"
  else
    ARGUMENTS=$(json_list --distributed "${program[@]}")
  fi
  while IFS= read -r line; do
    [[ $line != '#'* ]] || continue
    filled=''
    while [[ $line =~ \$\{([A-Z_]+)\} ]]; do
      key=${BASH_REMATCH[1]}
      [[ -n ${!key} ]] || continue 2
      filled+=${line%%"\${$key}"*}${!key}
      line=${line#*"\${$key}"}
    done
    printf '%s\n' "$filled$line"
  done <"$root/launch/gke_$([[ -n $shards ]] && echo shards || echo jobset).yaml"
}

# ABSENT, Running, or how the job has ended: Completed or Failed. UNKNOWN if kubectl cannot tell.
state() {
  local found
  if found=$("${kubectl_[@]}" get "$kind" "$name" --output=jsonpath="$ended" 2>&1); then
    case $found in
      *Complete*) echo Completed ;;
      *Failed*) echo Failed ;;
      *) echo Running ;;
    esac
  elif [[ $found == *NotFound* ]]; then
    echo ABSENT
  else
    printf '%s\n' "$found" >&2
    echo UNKNOWN
  fi
}

# "POD PHASE" of the pods that do not run.
waiting_pods() {
  "${kubectl_[@]}" get pods --selector="$label" --field-selector=status.phase=Pending --output=name 2>/dev/null || true
}

# Follows the logs until the job has ended; pods come and go meanwhile.
follow() {
  local since='' silence=0 state seen='' waiting
  while :; do
    state=$(state)
    case $state in
      Completed) say "done" && return 0 ;;
      Failed) give_up "$kind $name failed; kubectl describe $kind $name says why" ;;
      ABSENT) give_up "there is no $kind $name in namespace $namespace" ;;
    esac
    waiting=$(waiting_pods)
    if [[ -n $waiting ]]; then
      [[ $waiting == "$seen" ]] || say "waiting for ${waiting//$'\n'/, }"
      silence=$((silence + poll))
      ((silence < wait)) || give_up "these pods did not start in $silence s: ${waiting//$'\n'/, }"
    else
      silence=0
      # Ends when the pods end, and with an error if one is about to.
      "${kubectl_[@]}" logs --follow --prefix --selector="$label" --max-log-requests="$pods" --ignore-errors \
        ${since:+"--since-time=$since"} --tail=-1 || true
      since=$(date -u +%FT%TZ)
    fi
    seen=$waiting
    sleep "$poll"
  done
}

run() {
  local text
  need image accelerator topology
  need_program
  if [[ -z $shards ]]; then
    [[ $topology =~ ^[0-9]+x[0-9]+(x[0-9]+)?$ ]] || mistake "--topology=$topology; allowed: forms such as 4x4 and 4x4x4"
    hosts=$((${topology//x/*} / chips))
    ((hosts > 0 && hosts * chips == ${topology//x/*})) || mistake "--topology=$topology is no multiple of --chips=$chips"
    pods=$((hosts * node_count))
  fi
  text=$(manifest)
  if [[ -n $dry_run ]]; then
    printf '%s\n' "$text"
    show "${kubectl_[@]}" get "$kind" "$name" --output=jsonpath="$ended"
    show "${kubectl_[@]}" apply --filename=-
    show "${kubectl_[@]}" logs --follow --prefix --selector="$label" --max-log-requests="$pods" --ignore-errors --tail=-1
    return
  fi
  case $(state) in
    Running) say "$kind $name runs already" ;;
    Completed) say "$kind $name has completed; delete it to run it again" ;;
    Failed)
      "${kubectl_[@]}" delete "$kind" "$name" --wait=true
      "${kubectl_[@]}" apply --filename=- <<<"$text"
      ;;
    ABSENT) "${kubectl_[@]}" apply --filename=- <<<"$text" ;;
    UNKNOWN) give_up "kubectl cannot reach the cluster" ;;
  esac
  trap 'say "no longer following; the job goes on"; exit 130' INT
  follow
}

case $verb in
  run) run ;;
  follow)
    pods=${pods:-100}
    follow
    ;;
  delete) act "${kubectl_[@]}" delete "$kind" "$name" --ignore-not-found ;;
esac
