#!/usr/bin/env bash
# Builds the container of a kind of accelerator from the commit that is checked out.
#
#   launch/image.sh --kind=tpu --image=REGISTRY/qrpo:TAG [--push]
#
# --kind=tpu|gpu|cpu   launch/docker/KIND.Dockerfile
# --image=NAME         of the image; without a tag it gets that of the commit
# --push               push it too
# --builder=COMMAND    docker, podman, ... (docker)
# --allow-dirty        build the commit although the checkout has changes that are not in it
# --dry-run            print the commands and run none

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
kind='' image='' push='' builder=docker allow_dirty=''
read_flags "kind image builder" "push allow-dirty" "$@"
need kind image
[[ $kind == tpu || $kind == gpu || $kind == cpu ]] || mistake "--kind=$kind; allowed: tpu, gpu, cpu"
need_command "$builder"
commit=$(clean_commit)
[[ ${image##*/} == *:* ]] || image+=:${commit:0:12}

build=("$builder" build --file="launch/docker/$kind.Dockerfile" --label="org.opencontainers.image.revision=$commit"
  --tag="$image" -)
archive=(git -C "$root" archive --format=tar "$commit")
if [[ -n $dry_run ]]; then
  printf '+ %s |%s\n' "${archive[*]@Q}" "$(printf ' %q' "${build[@]}")"
else
  "${archive[@]}" | "${build[@]}"
fi
[[ -z $push ]] || act "$builder" push "$image"
