#!/usr/bin/env bash
# Runs a config on every host of a TPU slice. The same command resumes after a preemption.
#   launch/tpu_pod.sh NAME ZONE CONFIG WORKDIR [--config.KEY=VALUE ...]
# NAME is a TPU VM that exists; CONFIG is a path inside this repository; WORKDIR a path that every host sees
# (a mounted bucket or file store). Needs gcloud with access to the project that owns the slice.
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,5p' "$0" >&2; exit 2; }
name=$1 zone=$2 config=$3 workdir=$4
shift 4
here=$(cd "$(dirname "$0")/.." && pwd)
on_all() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }

# Copies the commit that is checked out, so that the hosts run exactly a commit.
bundle=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$bundle"' EXIT
git -C "$here" archive --format=tar.gz -o "$bundle" HEAD
gcloud compute tpus tpu-vm scp "$bundle" "$name:qrpo-jax.tar.gz" --zone="$zone" --worker=all
on_all 'mkdir -p qrpo-jax && tar -xzf qrpo-jax.tar.gz -C qrpo-jax && cd qrpo-jax \
  && python3.11 -m venv .venv && .venv/bin/pip install -q -e ".[tpu]"'

printf -v overrides ' %q' "$@"
[ $# -gt 0 ] || overrides=""
on_all "cd qrpo-jax && .venv/bin/python -m qrpo_jax.main --distributed --config=$(printf %q "$config") \
  --workdir=$(printf %q "$workdir")$overrides"
