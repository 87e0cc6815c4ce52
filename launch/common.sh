# shellcheck shell=bash
# What the launchers share: flags, messages, dry runs. Sourced, not run; bash 4.4 or newer.
#
# A launcher declares its flags as variables with their defaults and calls `read_flags`. --node-count=4 sets node_count;
# a flag that is not given is read from the environment, as QRPO_NODE_COUNT. Flags of the program go to the array `program`.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run='' program=()

# A mistake of the user: one line, status 2.
mistake() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# The run cannot go on: one line, status 1.
give_up() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

say() { printf '%s %s: %s\n' "$(date +%H:%M:%S)" "${0##*/}" "$*" >&2; }

# The comment at the head of the script.
usage() { sed -n '2,/^$/s/^#$\|^# //p' "$0"; }

# read_flags "flags with a value" "switches" ARGUMENTS...
read_flags() {
  local values=" $1 " switches=" $2 dry-run " name flag
  shift 2
  for name in $values $switches; do
    flag=QRPO_$(tr 'a-z-' 'A-Z_' <<<"$name")
    [[ -z ${!flag-} ]] || printf -v "${name//-/_}" %s "${!flag}"
  done
  for flag in "$@"; do
    name=${flag#--} name=${name%%=*}
    case $flag in
      --help | -h) usage; exit 0 ;;
      --config | --config=* | --config.* | --workdir | --workdir=* | --fork=*) program+=("$flag"); continue ;;
      --*) ;;
      *) mistake "unknown argument $flag (--help lists all flags)" ;;
    esac
    if [[ $flag == *=* && $values == *" $name "* ]]; then
      printf -v "${name//-/_}" %s "${flag#*=}"
    elif [[ $flag != *=* && $switches == *" $name "* ]]; then
      printf -v "${name//-/_}" yes
    elif [[ $values == *" $name "* ]]; then
      mistake "--$name needs a value: --$name=..."
    else
      mistake "unknown flag --$name (--help lists all flags)"
    fi
  done
}

# Each flag must have a value.
need() {
  local name
  for name in "$@"; do
    [[ -n ${!name-} ]] || mistake "--${name//_/-}=... is missing (or QRPO_${name^^} in the environment)"
  done
}

need_program() {
  [[ " ${program[*]-} " == *" --config="* ]] || mistake "--config=NAME of the run is missing"
  [[ " ${program[*]-} " == *" --workdir="* ]] || mistake "--workdir=DIR of the run is missing"
}

# Each flag must be a whole number of at least 1.
need_count() {
  local name
  for name in "$@"; do
    [[ ${!name} =~ ^[1-9][0-9]{0,6}$ ]] || mistake "--${name//_/-}=${!name}; allowed: whole numbers from 1"
  done
}

need_command() { [[ -n $dry_run ]] || command -v "$1" >/dev/null || mistake "the command $1 is not installed"; }

# Runs a command that changes something; a dry run prints it.
act() {
  if [[ -n $dry_run ]]; then
    show "$@"
  else
    "$@"
  fi
}

# Prints a command as it could be typed.
show() {
  local line
  printf -v line ' %q' "$@"
  printf '+%s\n' "$line"
}

# The commit that is checked out; a change that is in no commit would not be shipped, so it is refused.
clean_commit() {
  local commit
  commit=$(git -C "$root" rev-parse HEAD) || mistake "$root is no git checkout"
  if [[ -n ${allow_dirty-} || -z $(git -C "$root" status --porcelain) ]]; then
    echo "$commit"
  else
    mistake "uncommitted changes would be left behind: commit them, or ship the commit without them with --allow-dirty"
  fi
}

# A JSON list of strings; `$(` would be a variable of the container in a manifest's arguments.
json_list() {
  local text separator=''
  printf '['
  for text in "$@"; do
    [[ $text != *[[:cntrl:]]* ]] || mistake "a flag has a line break or another control character: ${text@Q}"
    text=${text//\\/\\\\}
    text=${text//\"/\\\"}
    printf '%s"%s"' "$separator" "${text//\$(/\$\$(}"
    separator=', '
  done
  printf ']'
}
