#!/usr/bin/env bash
# Starts one run as several processes on this machine: a test of a run on a pod, or one process for each GPU.
#
#   launch/local.sh PROCESSES --config=configs/demo.py [flags of rc_jax.main ...]
#
# Process 0 prints to the screen. The others write to files in a temporary folder, which the script names.
# With GPUS=1 each process sees one GPU, chosen by its number. DRY_RUN=1 prints the commands and starts nothing.
# Exits with the first status other than 0. When one process fails, the others get SIGTERM and, after GRACE seconds
# (15), SIGKILL.
set -euo pipefail

usage="usage: launch/local.sh PROCESSES --config=FILE [flags of rc_jax.main ...]"
processes=${1:?$usage}
case $processes in '' | *[!0-9]* | 0*) echo "error: PROCESSES is '$processes'; expected 1 or more. $usage" >&2; exit 2 ;; esac
shift

python=${PYTHON:-python3}
# A port that is free now. Another program could take it before process 0 does; process 0 then reports it.
port=${PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
[ -n "${DRY_RUN:-}" ] || logs=$(mktemp -d)
pids=()

signal_all() { for pid in "${pids[@]}"; do kill "-$1" "$pid" 2>/dev/null || true; done; }
interrupted=
trap 'interrupted=1; signal_all TERM' INT TERM HUP

for ((id = 0; id < processes; id++)); do
  variables=(RC_JAX_COORDINATOR="127.0.0.1:$port" RC_JAX_PROCESSES="$processes" RC_JAX_PROCESS_ID="$id")
  [ -n "${GPUS:-}" ] && variables+=(CUDA_VISIBLE_DEVICES="$id")
  if [ -n "${DRY_RUN:-}" ]; then
    echo env "${variables[@]}" "$python" -m rc_jax.main "$@"
    continue
  fi
  if [ "$id" = 0 ]; then
    env "${variables[@]}" "$python" -m rc_jax.main "$@" &
  else
    env "${variables[@]}" "$python" -m rc_jax.main "$@" >"$logs/process$id.log" 2>&1 &
  fi
  pids+=($!)
done
[ -n "${DRY_RUN:-}" ] && exit 0
[ "$processes" -gt 1 ] && echo "processes 1 to $((processes - 1)) write to $logs"

status=0
left=$processes
while [ "$left" -gt 0 ]; do
  ended=0
  interrupted=
  wait -n || ended=$?
  # A signal to this script ends `wait`, but no process: the processes save together and exit.
  [ -n "$interrupted" ] && continue
  left=$((left - 1))
  if [ "$ended" != 0 ] && [ "$status" = 0 ]; then
    status=$ended
    # After a failure the others would wait without end. 143 means that all of them got SIGTERM, and save.
    if [ "$ended" != 143 ]; then
      signal_all TERM
      # JAX handles SIGTERM as a notice, which a process that waits for a dead one does not read.
      sleep "${GRACE:-15}"
      signal_all KILL
    fi
  fi
done
exit "$status"
