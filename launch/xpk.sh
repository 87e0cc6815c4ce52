#!/usr/bin/env bash
# Runs a config on a GKE cluster that xpk made, as an xpk workload.
#
#   launch/xpk.sh run --name=NAME --cluster=CLUSTER --project=PROJECT --zone=ZONE --type=v5p-128 --image=IMAGE \
#     --config=tulu3_8b --workdir=gs://BUCKET/runs/tulu3_8b [--config.KEY=VALUE ...]
#   launch/xpk.sh delete --name=NAME --cluster=CLUSTER --project=PROJECT --zone=ZONE
#
# run      creates the workload; one of that name that is queued or runs is left as it is. xpk starts it again after a
#          preemption, and after statuses 75 and 1 (when a host dies, the others end with 1); the program resumes.
# delete   ends it: the pods get SIGTERM, save and leave
#
# --image=IMAGE        built with launch/image.sh
# --type=TYPE          TPU type, as xpk names it
# --node-count=N       slices that work as one (1)
# --spot, --reservation=NAME, --on-demand   capacity, for clusters that provision by themselves
# --cache=DIR          for compiled programs, such as gs://BUCKET/cache: a new pod does not compile again
# --priority=LEVEL     of the workload (medium)
# --max-restarts=N     of all kinds: xpk counts preemptions too (1000)
# --grace=SECONDS      between SIGTERM and SIGKILL (300)
# --dry-run            print the commands and run none
#
# Its logs: kubectl logs --follow --prefix --selector=jobset.sigs.k8s.io/jobset-name=NAME
# A flag NAME may be given as QRPO_NAME in the environment.

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
name='' cluster='' project='' zone='' type='' image='' node_count=1 spot='' reservation='' on_demand=''
priority=medium max_restarts=1000 grace=300 cache=''
verb=${1-}
case $verb in
  run | delete) shift ;;
  --help | -h) usage; exit ;;
  *) mistake "run or delete? (--help explains them)" ;;
esac
read_flags "name cluster project zone type image node-count reservation cache priority max-restarts grace" "spot on-demand" "$@"
need name cluster project zone
need_count node_count max_restarts grace
need_command xpk
where=(--workload="$name" --cluster="$cluster" --project="$project" --zone="$zone")

if [[ $verb == delete ]]; then
  act xpk workload delete "${where[@]}" --force
  exit
fi

need type image
need_program
listing=(xpk workload list --cluster="$cluster" --project="$project" --zone="$zone" --filter-by-job="^$name\$")
if [[ -n $dry_run ]]; then
  show "${listing[@]}" --filter-by-status=QUEUED
  show "${listing[@]}" --filter-by-status=RUNNING
else
  for status in QUEUED RUNNING; do
    listed=$("${listing[@]}" --filter-by-status="$status") || give_up "xpk cannot list the workloads of $cluster"
    if grep -qw -- "$name" <<<"$listed"; then
      say "workload $name is ${status,,} already"
      exit
    fi
  done
fi

flags=(--tpu-type="$type" --num-slices="$node_count" --docker-image="$image" --priority="$priority")
flags+=(--max-restarts="$max_restarts" "--restart-on-exit-codes=1,75" --termination-grace-period-seconds="$grace")
[[ -z $cache ]] || flags+=(--env="JAX_COMPILATION_CACHE_DIR=$cache")
[[ -z $spot ]] || flags+=(--spot)
[[ -z $on_demand ]] || flags+=(--on-demand)
[[ -z $reservation ]] || flags+=(--reservation="$reservation")
printf -v command ' %q' python -m qrpo_jax.main --distributed "${program[@]}"
act xpk workload create "${where[@]}" "${flags[@]}" --command="${command# }"
