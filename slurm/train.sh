#!/bin/bash
# Runs `python -m pipeline STAGE …` on the nodes of this Slurm job: one rank per GPU, or one per
# node where there are none. The stages' scripts call it; README.md says what it promises.
set -euo pipefail

slurm=$(cd "${BASH_SOURCE[0]%/*}" && pwd)
source "$slurm/env.sh"
expect_to_be_stopped

gpus=${SLURM_GPUS_ON_NODE:-0}
ranks_per_node=${SLURM_NTASKS_PER_NODE:-$((gpus > 0 ? gpus : 1))}
# shellcheck disable=SC2153  # not a misspelt GPUS
cpus_per_rank=$((SLURM_CPUS_ON_NODE / ranks_per_node))
mapfile -t nodes < <(node_names)

export MASTER_ADDR MASTER_PORT SECOND_ADDR
MASTER_ADDR=$(node_address "${nodes[0]}")
SECOND_ADDR=$(node_address "${nodes[1]:-${nodes[0]}}")
# Below the range from which systems take ports for outgoing connections.
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
# Both names: torch's, and the one by which DeepSpeed counts the ranks of a node on CPUs.
export LOCAL_WORLD_SIZE=$ranks_per_node LOCAL_SIZE=$ranks_per_node
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus_per_rank > 0 ? cpus_per_rank : 1))}

step_options=(
    --ntasks=$((SLURM_NNODES * ranks_per_node))
    --ntasks-per-node="$ranks_per_node"
    --cpus-per-task="$((cpus_per_rank > 0 ? cpus_per_rank : 1))"
    --export=ALL         # also when the job was submitted with --export=NONE
    --kill-on-bad-exit=1 # a dead rank leaves the others waiting in a collective for ever
)
if ((gpus > 0)); then
    step_options+=(--gpus-per-node="$gpus") # a step does not inherit what --exclusive brought
fi

run_to_be_resumed srun "${step_options[@]}" bash "$slurm/rank.sh" "$@"
