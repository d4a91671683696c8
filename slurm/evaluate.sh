#!/bin/bash
#SBATCH --job-name=mmloom-evaluate
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Evaluates a run: sbatch [sbatch's options] slurm/evaluate.sh --run DIR --data DIR [option …]
set -euo pipefail

# sbatch runs a copy of this file from a spool folder; Slurm knows where the original lies.
command=$(scontrol show job "${SLURM_JOB_ID:?use sbatch}" | sed -n 's/^ *Command=//p')
source "${command%%/evaluate.sh*}/env.sh"
expect_to_be_stopped
# More threads than CPUs wait for each other where other jobs share the node.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_ON_NODE}

step_options=(--ntasks=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" --export=ALL)
if ((${SLURM_GPUS_ON_NODE:-0} > 0)); then
    step_options+=(--gpus-per-node="$SLURM_GPUS_ON_NODE")
fi

# Until Python listens to them, neither signal may kill.
# shellcheck disable=SC2016  # the step's own arguments
run_to_be_resumed srun "${step_options[@]}" \
    bash -c 'trap "" USR1 TERM; exec python -m pipeline evaluate "$@"' evaluate "$@"
