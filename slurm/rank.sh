#!/bin/bash
# One rank: translates Slurm's variables to torch's, then executes the program.
set -euo pipefail

# Neither signal may kill the rank before Python handles them, nor a compiler that it starts, nor a
# rank that is about to exit with 2 for the same user's mistake as another rank.
trap '' USR1 TERM

export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID

interface_to() {
    local address
    address=$(getent ahosts "$1" | awk 'NR == 1 { print $1 }') &&
        ip -oneline route get "$address" | sed -n 's/.* dev \([^ ]*\).*/\1/p'
}

# Gloo listens on the address that the host's name resolves to, on many systems loopback. It must
# listen on the interface of the route to another node of the job (loopback if that is this host).
# If that cannot be determined, Gloo's own choice is kept.
if ((SLURM_NNODES > 1)) && [[ -z ${GLOO_SOCKET_IFNAME:-} ]]; then
    peer=$MASTER_ADDR
    if ((SLURM_NODEID == 0)); then peer=$SECOND_ADDR; fi
    if interface=$(interface_to "$peer") && [[ $interface ]]; then
        export GLOO_SOCKET_IFNAME=$interface
    fi
fi

exec python -m pipeline "$@"
