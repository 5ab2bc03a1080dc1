#!/usr/bin/env bash
# One run on a Cloud TPU slice, from creating it to deleting it. Needs gcloud, logged in.
#
#   launch/tpu_pod.sh create  NAME                 requests the slice, as a queued resource
#   launch/tpu_pod.sh install NAME                 copies the newest commit to every worker, installs it, mounts BUCKET
#   launch/tpu_pod.sh run     NAME --config=FILE [flags of rc_jax.main ...]
#   launch/tpu_pod.sh keep    NAME --config=FILE [flags ...]   all of these, again after each preemption, until it ends
#   launch/tpu_pod.sh delete  NAME
#
# From the environment:
#   ZONE     such as us-west4-a              TYPE     such as v5litepod-16, v5p-32, v6e-8
#   BUCKET   holds the run's folder and the data, mounted at ~/bucket on every worker. Give it hierarchical namespaces:
#            renaming a folder is then atomic, so no reader sees an incomplete checkpoint
#   RUNTIME  of the virtual machines; default v2-alpha-tpuv5-lite      SPOT=1  preemptible, at a fraction of the price
#   PYTHON   on the virtual machines, 3.11 or later; default python3. Ubuntu 22.04 brings 3.10: install a later one
#
# Check first that a recipe fits the slice: python -m rc_jax.main --mode=compile --topology=v5e:4x4 ...
# The run's folder is ~/bucket/runs/NAME. DRY_RUN=1 prints the commands and starts nothing.
set -euo pipefail

usage="usage: launch/tpu_pod.sh create|install|run|keep|delete NAME [flags of rc_jax.main ...]"
action=${1:?$usage}
name=${2:?$usage}
shift 2
for variable in ZONE TYPE BUCKET; do
  [ -n "${!variable:-}" ] || { echo "error: $variable is not set; see the head of launch/tpu_pod.sh. $usage" >&2; exit 2; }
done
where=(--zone="$ZONE")

# With DRY_RUN prints a command, otherwise runs it.
do_() {
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

on_all_workers() { do_ gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"; }

create() {
  local more=()
  [ -n "${SPOT:-}" ] && more+=(--spot)
  do_ gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" \
    --accelerator-type="$TYPE" --runtime-version="${RUNTIME:-v2-alpha-tpuv5-lite}" "${more[@]}"
  [ -n "${DRY_RUN:-}" ] && return
  until [ "$(state)" = ACTIVE ]; do
    echo "waiting for $name: $(state)"
    sleep 30
  done
}

state() { gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' 2>/dev/null || echo ABSENT; }

install() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  do_ git archive --format=tar.gz --output="$archive" HEAD
  do_ gcloud compute tpus tpu-vm scp "$archive" "$name":rc_jax.tar.gz "${where[@]}" --worker=all
  on_all_workers "mkdir -p rc_jax bucket && tar xzf rc_jax.tar.gz -C rc_jax && cd rc_jax && \
${PYTHON:-python3} -m venv .venv && .venv/bin/pip install -q -e '.[tpu]' && \
(mountpoint -q ~/bucket || gcsfuse --implicit-dirs $BUCKET ~/bucket)"
  rm -f "$archive"
}

# Each worker runs the same command and finds the others through the metadata of the slice.
run() {
  local flags
  flags=$(printf '%q ' "$@")
  on_all_workers "cd rc_jax && .venv/bin/python -m rc_jax.main --workdir=\$HOME/bucket/runs/$name $flags"
}

delete() { do_ gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet; }

keep() {
  if [ -n "${DRY_RUN:-}" ]; then
    create; install; run "$@"; delete
    return
  fi
  while true; do
    [ "$(state)" = ACTIVE ] || { [ "$(state)" = ABSENT ] || delete; create; install; }
    if run "$@"; then
      delete
      return
    fi
    # A mistake in the recipe would repeat without end, so only a preempted slice is requested again.
    [ "$(state)" = ACTIVE ] && { echo "error: the run failed on a slice that is still there; see above" >&2; exit 1; }
    echo "$name was preempted; requesting it again"
  done
}

case $action in
  create | install | delete) "$action" ;;
  run | keep)
    [ $# -gt 0 ] || { echo "error: --config is missing. $usage" >&2; exit 2; }
    "$action" "$@"
    ;;
  *) echo "error: '$action' is none of create, install, run, keep, delete. $usage" >&2; exit 2 ;;
esac
