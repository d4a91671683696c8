# shellcheck shell=bash
# What every job script here needs; sourced, never run. Sets `repo` and makes its Python usable.

repo=$(cd "${BASH_SOURCE[0]%/*}/.." && pwd)

# The caller's environment counts where the repository has none of its own.
if [[ -e $repo/.venv/bin/activate ]]; then
    # shellcheck source=/dev/null
    source "$repo/.venv/bin/activate"
fi

# The job keeps the folder it was submitted from, so that relative paths mean what the user meant.
export PYTHONPATH="$repo${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1

# Left to itself, DeepSpeed guesses; a CUDA build of torch on a node without GPUs would mislead it.
if [[ ! -v SLURM_GPUS_ON_NODE ]]; then
    export DS_ACCELERATOR=${DS_ACCELERATOR:-cpu}
fi

# Prints the address by which Slurm itself reaches a node. A node's name need not resolve.
node_address() {
    scontrol --oneliner show node "$1" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p'
}

# Prints the names of the job's nodes, one per line, in the order of the ranks.
node_names() {
    scontrol show hostnames "$SLURM_JOB_NODELIST"
}

STOPPED=75 # how a program says "I was asked to stop and have saved" (EX_TEMPFAIL)

interrupted='' ending='' step=''

# From here on neither signal ends this shell. --signal=B:USR1@… reaches only it; srun passes USR1 on
# to every task. SIGTERM, from a requeue, a cancellation or the end of the time, reaches the tasks
# as well: nothing to pass on.
expect_to_be_stopped() {
    trap 'interrupted=yes; if [[ $step ]]; then kill -USR1 "$step" || true; fi' USR1
    trap 'interrupted=yes ending=yes' TERM
}

# Runs `srun …` to its end and exits with its code. A program that ends with 75 can go on where it
# was: then the job goes back to the queue, unless Slurm is about to send it there by itself.
run_to_be_resumed() {
    local code
    # A USR1 in the moment before srun is ready to pass it on must not kill srun.
    (trap '' USR1 && exec "$@") &
    step=$!

    # A signal ends `wait` early; the tasks still need their time to save.
    while
        interrupted='' code=0
        wait "$step" || code=$?
        [[ $interrupted ]]
    do :; done

    if [[ $code == "$STOPPED" && ! $ending ]]; then
        echo "$SLURM_JOB_NAME: what was done is saved; job $SLURM_JOB_ID goes back to the queue"
        scontrol requeue "$SLURM_JOB_ID" ||
            echo "it cannot be requeued; submit it again to go on" >&2
    fi
    exit "$code"
}
