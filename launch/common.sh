# shellcheck shell=bash
# What the launchers share: flags, messages, dry runs. Sourced, not run; bash 4.4 or newer.
#
# A launcher declares its flags as variables with their defaults and calls `read_flags`. --node-count=4 sets node_count;
# a flag that is not given is read from the environment, as QRPO_NODE_COUNT. Flags of the program go to the array `program`.
set -euo pipefail
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || {
  echo "error: bash $BASH_VERSION is too old; 4.4 or newer is needed" >&2
  exit 2
}

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
# Here and below, names of local variables begin with _ so that they hide no flag.
read_flags() {
  local _values=" $1 " _switches=" $2 dry-run " _flag _word
  shift 2
  for _flag in $_values $_switches; do
    _word=QRPO_$(tr 'a-z-' 'A-Z_' <<<"$_flag")
    [[ -z ${!_word-} ]] || printf -v "${_flag//-/_}" %s "${!_word}"
  done
  for _word in "$@"; do
    _flag=${_word#--} _flag=${_flag%%=*}
    case $_word in
      --help | -h)
        usage
        exit
        ;;
      --config | --config=* | --config.* | --workdir | --workdir=* | --fork=* | --join-timeout=*)
        program+=("$_word")
        continue
        ;;
      --*) ;;
      *) mistake "unknown argument $_word (--help lists all flags)" ;;
    esac
    if [[ $_word == *=* && $_values == *" $_flag "* ]]; then
      printf -v "${_flag//-/_}" %s "${_word#*=}"
    elif [[ $_word != *=* && $_switches == *" $_flag "* ]]; then
      printf -v "${_flag//-/_}" yes
    elif [[ $_values == *" $_flag "* ]]; then
      mistake "--$_flag needs a value: --$_flag=..."
    else
      mistake "unknown flag --$_flag (--help lists all flags)"
    fi
  done
}

# Each flag must have a value.
need() {
  local _flag
  for _flag in "$@"; do
    [[ -n ${!_flag-} ]] || mistake "--${_flag//_/-}=... is missing (or QRPO_${_flag^^} in the environment)"
  done
}

need_program() {
  [[ " ${program[*]-} " == *" --config="* ]] || mistake "--config=NAME of the run is missing"
  [[ " ${program[*]-} " == *" --workdir="* ]] || mistake "--workdir=DIR of the run is missing"
}

# Each flag must be a whole number of at least 1.
need_count() {
  local _flag
  for _flag in "$@"; do
    [[ ${!_flag} =~ ^[1-9][0-9]{0,6}$ ]] || mistake "--${_flag//_/-}=${!_flag}; allowed: whole numbers from 1"
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
