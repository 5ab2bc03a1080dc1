#!/usr/bin/env bash
# One run on several GPU nodes under SLURM: one task for each GPU. The tasks find each other through SLURM.
#
#   sbatch --nodes=2 --gres=gpu:8 --ntasks-per-node=8 launch/slurm.sh --config=configs/cityscapes.py \
#     --workdir=SHARED_FOLDER/run [flags of rc_jax.main ...]
#
# All nodes must see the folder of --workdir. Before its time is up, and when it preempts the job, SLURM sends SIGTERM
# to all tasks. They save and exit with 143, and the script requeues the job, which then resumes.
# DRY_RUN=1 prints the command and starts nothing. PYTHON names the interpreter of the environment.
#SBATCH --job-name=rc_jax
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

usage="usage: sbatch --nodes=N --ntasks-per-node=GPUS launch/slurm.sh --config=FILE --workdir=DIR [flags ...]"
case " $* " in *" --workdir="*) ;; *) echo "error: --workdir is missing; all nodes must see it. $usage" >&2; exit 2 ;; esac
python=${PYTHON:-python3}

command=(srun --kill-on-bad-exit=0 "$python" -m rc_jax.main "$@")
if [ -n "${DRY_RUN:-}" ]; then
  echo "${command[@]}"
  exit 0
fi
[ -n "${SLURM_JOB_ID:-}" ] || { echo "error: not in a SLURM job. $usage" >&2; exit 2; }

status=0
"${command[@]}" || status=$?
if [ "$status" = 143 ]; then
  echo "saved; the job is requeued"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
