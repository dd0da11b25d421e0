#!/usr/bin/env bash
# Runs a launcher below something that stops by SIGTERM and judges by exit codes, as Kubernetes and Docker do:
#
#   supervise.sh torchrun ... -m llmkit train CONFIG
#
# A launcher passes SIGTERM on, kills its processes 30 s later, and makes 1 of every exit code. Here SIGTERM (SIGINT,
# SIGUSR1) becomes a file that asks the run to stop, however long its save takes, and the exit code is the run's own:
# 0 done, 75 stopped and saved, 2 a mistake of the user's, 1 a fault.
#
# SUPERVISE_DIR names a folder that all machines of the run share, and no other run; one machine needs none.
set -uo pipefail

say() { echo "supervise.sh: $*" >&2; }

if [ $# = 0 ]; then
  say "usage: supervise.sh torchrun ... -m llmkit train CONFIG [section.key=value ...]"
  exit 2
fi
folder=${SUPERVISE_DIR:-$(mktemp -d)}
mkdir -p "$folder" || exit 1
export STOP_FILE=$folder/stop END_FILE=$folder/end   # the contract with the trainer: docs/slurm.md

# Asks for a stop; again and again, since a run that is just starting removes the stop files that it finds.
asking=
# shellcheck disable=SC2317  # called by the traps
ask_to_stop() {
  [ -z "$asking" ] || return 0
  say "$1: asking the run to save and stop"
  while :; do
    [ -e "$STOP_FILE" ] || { echo "$1 on $HOSTNAME" >"$STOP_FILE.part" && mv "$STOP_FILE.part" "$STOP_FILE"; }
    sleep 2
  done >/dev/null 2>&1 &
  asking=$!
}
for name in TERM INT USR1; do
  # shellcheck disable=SC2064  # the name is meant as it is now
  trap "ask_to_stop SIG$name" "$name"
done

# Which file is there, so that one of an earlier start, which other machines may still have to read, is not taken for
# the end of this one.
end_file() { stat --format='%i %.Z' "$END_FILE" 2>/dev/null; }

# By now all machines have read it; left here, it would keep a mistake from being written before the run is opened.
find "$END_FILE" -mmin +1 -delete 2>/dev/null
before=$(end_file)
"$@" &
child=$!
while kill -0 "$child" 2>/dev/null; do wait "$child"; done   # a signal ends `wait` early
wait "$child"
code=$?
[ -z "$asking" ] || kill "$asking"

if [ "$(end_file)" != "$before" ] && [[ $(cat "$END_FILE" 2>/dev/null) =~ \"end\":\ \"([a-z]+)\" ]]; then
  case ${BASH_REMATCH[1]} in
    done) code=0 ;;
    stopped) code=75 ;;
    mistake) code=2 ;;
    fault) code=1 ;;
  esac
fi
[ -n "${SUPERVISE_DIR:-}" ] || rm -rf "$folder"
exit "$code"
