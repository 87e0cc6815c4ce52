#!/usr/bin/env bash
# Writes the lock files, which containers and hosts install from: the newest releases that setup.py allows, with hashes.
#
#   launch/lock.sh [--uv=PATH] [--dry-run]
#
# locks/base.txt has what every machine needs, locks/tpu.txt and locks/gpu.txt add the libraries of an accelerator, and
# locks/uv.txt is the installer. Run it after a change of setup.py; tests/launch/test_locks.py compares the two.

# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
uv=uv
read_flags "uv" "" "$@"
need_command "$uv"
cd "$root"
locks=launch/locks

compile() {
  act "$uv" pip compile --quiet --universal --python-version=3.13 --generate-hashes --no-annotate \
    --custom-compile-command=launch/lock.sh "$@"
}

compile setup.py --extra=gcs --extra=hf --extra=wandb --output-file="$locks/base.txt"
for kind in tpu:tpu gpu:cuda; do
  file=$locks/${kind%:*}.txt
  # What base.txt has is left to it, so that a package has one place.
  known=()
  while read -r package; do known+=(--no-emit-package="$package"); done < <(sed -n 's/^\([a-z0-9._-]*\)==.*/\1/p' "$locks/base.txt")
  compile setup.py --extra=gcs --extra=hf --extra=wandb --extra="${kind#*:}" --constraints="$locks/base.txt" "${known[@]}" \
    --output-file="$file"
  [[ -n $dry_run ]] || sed -i.old '0,/^[^#]/s//-r base.txt\n&/' "$file"
  rm -f "$file.old"
done
echo "uv>=0.9" | compile - --output-file="$locks/uv.txt"
