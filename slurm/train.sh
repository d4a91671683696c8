#!/bin/bash
# Runs `python -m pipeline STAGE …` on the nodes of this Slurm job: one rank per GPU, or one per
# node without GPUs. The scripts of the stages call it; README.md documents its behaviour.
set -euo pipefail

slurm=$(cd "${BASH_SOURCE[0]%/*}" && pwd)
source "$slurm/env.sh"
handle_stop_signals

gpus=${SLURM_GPUS_ON_NODE:-0}
ranks_per_node=${SLURM_NTASKS_PER_NODE:-$((gpus > 0 ? gpus : 1))}
# shellcheck disable=SC2153  # not a misspelt GPUS
cpus_per_rank=$((SLURM_CPUS_ON_NODE / ranks_per_node))
mapfile -t nodes < <(node_names)

export MASTER_ADDR MASTER_PORT SECOND_ADDR
MASTER_ADDR=$(node_address "${nodes[0]}")
SECOND_ADDR=$(node_address "${nodes[1]:-${nodes[0]}}")
# Below the range of ephemeral ports.
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
# torch's name, and the one that DeepSpeed reads on CPUs.
export LOCAL_WORLD_SIZE=$ranks_per_node LOCAL_SIZE=$ranks_per_node
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus_per_rank > 0 ? cpus_per_rank : 1))}

step_options=(
    --ntasks=$((SLURM_NNODES * ranks_per_node))
    --ntasks-per-node="$ranks_per_node"
    --cpus-per-task="$((cpus_per_rank > 0 ? cpus_per_rank : 1))"
    --export=ALL         # even if the job was submitted with --export=NONE
    --kill-on-bad-exit=1 # otherwise the others would wait in a collective forever
)
if ((gpus > 0)); then
    step_options+=(--gpus-per-node="$gpus") # a step does not inherit the GPUs of --exclusive
fi

run_and_requeue srun "${step_options[@]}" bash "$slurm/rank.sh" "$@"
