#!/bin/bash
#SBATCH --job-name=mmloom-etl
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --requeue
# Runs an ETL job on a Ray cluster that is started for this Slurm job:
#   sbatch [sbatch's options] slurm/etl.sh JOB --input PATH --output DIR [option …]
set -euo pipefail

# sbatch runs a copy of this file from a spool folder; Slurm knows the original's path.
command=$(scontrol show job "${SLURM_JOB_ID:?use sbatch}" | sed -n 's/^ *Command=//p')
source "${command%%/etl.sh*}/env.sh"

job=${1:?which JOB? see etl/*.py}
shift
if [[ ! -e $repo/etl/$job.py ]]; then
    echo "etl.sh: there is no $repo/etl/$job.py" >&2
    exit 2
fi

# Other jobs may run a Ray on the same host, so the ports depend on the job's id.
port=$((20000 + SLURM_JOB_ID % 5000 * 2))
dashboard=$((port + 1))
mapfile -t nodes < <(node_names)
head=$(node_address "${nodes[0]}")

# A folder of this job's own; its logs say why a job failed.
RAY_TMPDIR=$(mktemp --directory "/tmp/mmloom-ray-$SLURM_JOB_ID-XXXX")
export RAY_TMPDIR

# Without a token, anyone who can reach these ports could run programs as the submitter.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

# With --block Ray's processes end with the process that is started here.
# shellcheck disable=SC2153  # not a misspelt GPUS
ray start --head --block --node-ip-address="$head" --port="$port" --num-cpus="$SLURM_CPUS_ON_NODE" \
    --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" --disable-usage-stats >/dev/null &
running=($!)
shut_down() {
    local code=$?
    kill "${running[@]}" 2>/dev/null || true
    wait
    if ((code == 0)); then rm -rf "$RAY_TMPDIR"; fi
}
trap shut_down EXIT
trap 'exit 143' TERM

if ((SLURM_NNODES > 1)); then
    others=$((SLURM_NNODES - 1))
    # shellcheck disable=SC2016  # each node's own number of CPUs
    srun --relative=1 --nodes="$others" --ntasks="$others" --cpus-per-task="$SLURM_CPUS_ON_NODE" \
        --export=ALL bash -c 'exec ray start --block --address="$0" --num-cpus="$SLURM_CPUS_ON_NODE"' \
        "$head:$port" >/dev/null &
    running+=($!)
fi

# Ray has no way to wait until it accepts jobs.
url=http://127.0.0.1:$dashboard
until ray job list --address="$url" >/dev/null 2>&1; do
    kill -0 "${running[0]}" || exit 1
    sleep 0.5
done

ray job submit --address="$url" -- python "$repo/etl/$job.py" "$@"
