# shellcheck shell=bash
# Functions and environment of all job scripts here; to be sourced. Sets `repo` and activates its
# Python environment.

repo=$(cd "${BASH_SOURCE[0]%/*}/.." && pwd)

# Without a .venv in the repository, the submitter's environment is used.
if [[ -e $repo/.venv/bin/activate ]]; then
    # shellcheck source=/dev/null
    source "$repo/.venv/bin/activate"
fi

# The job runs in the folder it was submitted from, so that relative paths are the submitter's.
export PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1

# Otherwise DeepSpeed guesses, and is misled by a CUDA build of torch on a node without GPUs.
if [[ ! -v SLURM_GPUS_ON_NODE ]]; then
    export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu}
fi

# Prints the address of a node as Slurm knows it. A node's name may not resolve.
node_address() {
    scontrol --oneliner show node "$1" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p'
}

# Prints the names of the job's nodes, one per line, in the order of the ranks.
node_names() {
    scontrol show hostnames "$SLURM_JOB_NODELIST"
}

STOPPED=75 # exit code of a program that was asked to stop and has saved (EX_TEMPFAIL)

interrupted='' ending='' step=''

# After this neither signal ends the shell. --signal=B:USR1@… reaches only the shell, so it sends USR1
# to srun, which forwards it to every task. SIGTERM, from a requeue, a cancellation or the time limit,
# reaches the tasks as well.
handle_stop_signals() {
    trap 'interrupted=yes; if [[ $step ]]; then kill -USR1 "$step" || true; fi' USR1
    trap 'interrupted=yes ending=yes' TERM
}

# Runs `srun …` to its end and exits with its code. A program that ends with 75 can be resumed: the
# job is then requeued, unless Slurm is about to requeue it by itself.
run_and_requeue() {
    local code
    # A USR1 that arrives before srun can forward it must not kill srun.
    (trap '' USR1 && exec "$@") &
    step=$!

    # A signal interrupts `wait`; the tasks still need time to save.
    while
        interrupted='' code=0
        wait "$step" || code=$?
        [[ $interrupted ]]
    do :; done

    if [[ $code == "$STOPPED" && ! $ending ]]; then
        echo "$SLURM_JOB_NAME: saved; job $SLURM_JOB_ID goes back to the queue"
        scontrol requeue "$SLURM_JOB_ID" ||
            echo "it cannot be requeued; submit it again to resume" >&2
    fi
    exit "$code"
}
