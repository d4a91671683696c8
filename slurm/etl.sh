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

# Other jobs, and other people, may run a Ray on the same host. Its fixed ports depend on the job's id,
# above those that Ray gives to its workers; the agents', where Ray's own default is one for everybody,
# are whichever are free.
port=$((20000 + SLURM_JOB_ID % 2500 * 4))
dashboard=$((port + 1))
ports=(--dashboard-agent-listen-port=0)
mapfile -t nodes < <(node_names)
head=$(node_address "${nodes[0]}")

# A folder of this job's own; its logs say why a job failed.
RAY_TMPDIR=$(mktemp --directory "/tmp/mmloom-ray-$SLURM_JOB_ID-XXXX")
export RAY_TMPDIR
starts=$RAY_TMPDIR/starts.log # of Ray on all nodes, and how it ended there

# Without a token, anyone who can reach these ports could run programs as the submitter.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

running=()
shut_down() {
    local code=$?
    if ((${#running[@]})); then kill "${running[@]}" 2>/dev/null || true; fi
    wait 2>/dev/null
    if ((code == 0 || code == 143)); then
        rm -rf "$RAY_TMPDIR"
    else
        echo "etl.sh: the job ended with $code; Ray's logs are in $(hostname):$RAY_TMPDIR" >&2
    fi
}
trap shut_down EXIT
trap 'exit 143' TERM

give_up() {
    cat "$starts" >&2
    echo "etl.sh: $1" >&2
    exit 1
}

# Ends the job where Ray has died, or after WAIT seconds in which it has not done what is awaited.
WAIT=300 # a file system that many nodes share may take minutes to give them Python's files
waited=0
require_ray() {
    if ! kill -0 "${running[0]}" 2>/dev/null; then
        give_up "Ray has ended before $1"
    elif ((SECONDS - waited > WAIT)); then
        give_up "Ray has taken more than $WAIT s; gave up before $1"
    fi
}

# Starts `ray start --block` on some nodes, the first of them the head, and returns when it has
# started on all of them or has ended. With --block Ray's processes end with the one started here.
start_ray() {
    local settled=0 number=$1 output line
    shift
    exec {output}< <(exec "$@" 2>>"$starts")
    running+=($!)
    waited=$SECONDS
    while ((settled < number)); do
        if read -r -t 5 line <&"$output"; then
            case $line in
                *'Ray runtime started'*) settled=$((settled + 1)) ;;
                'Ray has ended on '*)
                    echo "etl.sh: $line" >&2
                    settled=$((settled + 1))
                    ;;
            esac
        elif (($? <= 128)); then # the end of its output
            give_up "Ray has ended before it had started on $number nodes"
        else
            require_ray "it had started on $number nodes"
        fi
    done
    cat <&"$output" >/dev/null & # or it would wait for a reader
}

# shellcheck disable=SC2153  # not a misspelt GPUS
start_ray 1 ray start --head --block --node-ip-address="$head" --port="$port" \
    --num-cpus="$SLURM_CPUS_ON_NODE" --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" \
    --ray-client-server-port=$((port + 2)) "${ports[@]}" --disable-usage-stats

# Nodes join a head that has started. A job counts the cluster's CPUs at its start, so it has to wait
# for all nodes; without one whose Ray has ended it does what it can.
if ((SLURM_NNODES > 1)); then
    others=$((SLURM_NNODES - 1))
    # shellcheck disable=SC2016  # each node's own number of CPUs
    start_ray "$others" srun --relative=1 --nodes="$others" --ntasks="$others" \
        --cpus-per-task="$SLURM_CPUS_ON_NODE" --export=ALL bash -c '
        ray start --block --address="$0" --num-cpus="$SLURM_CPUS_ON_NODE" "$@"
        echo "Ray has ended on $SLURMD_NODENAME"' "$head:$port" "${ports[@]}"
fi

# Ray has no way to wait until it accepts jobs.
url=http://127.0.0.1:$dashboard
waited=$SECONDS
until ray job list --address="$url" >/dev/null 2>&1; do
    require_ray "it accepted a job"
    sleep 0.5
done

# The agent that starts jobs may be ready later than the server that takes them, which then refuses:
# only if there is no such job, to submit it again is right.
name=etl-$SLURM_JOB_ID
until
    code=0
    ray job submit --address="$url" --submission-id="$name" -- python "$repo/etl/$job.py" "$@" ||
        code=$?
    ((code == 0)) || ray job status --address="$url" "$name" >/dev/null 2>&1
do
    require_ray "it accepted this job"
    sleep 0.5
done
exit "$code"
