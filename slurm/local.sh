#!/bin/bash
# A Slurm of two nodes on this host, to try the job scripts:
#   slurm/local.sh up   [--folder DIR] [--nodes N] [--cpus N] [--extra DIR] [--foreground]
#   slurm/local.sh down [--folder DIR]
# The tests use it as well; README.md says how to work with it.
set -euo pipefail

usage='usage: slurm/local.sh up [--folder DIR] [--nodes N] [--cpus N] [--extra DIR] [--foreground]
       slurm/local.sh down [--folder DIR]

  --folder DIR   where everything is kept; default: $XDG_RUNTIME_DIR/mmloom-slurm, or in /tmp
  --nodes N      number of nodes: node1, node2, … (default: 2)
  --cpus N       CPUs of each node (default: its share of the CPUs of this host)
  --extra DIR    append DIR/slurm.conf to the configuration, and use DIR/gres.conf
  --foreground   stay until interrupted, then take everything down'

die() {
    echo "error: $1" >&2
    exit 2
}

# Whether a daemon is running, by the file in which it wrote its process id. That may be another
# process by now, or one that has ended and that nobody has asked about (Z).
alive() {
    local pid name state
    pid=$(cat "$folder/$1.pid" 2>/dev/null) &&
        read -r _ name state _ 2>/dev/null <"/proc/$pid/stat" &&
        [[ $name == "(${1%%-*})" && $state != Z ]]
}

# Waits until a command succeeds; Slurm tells nobody when it is ready.
await() {
    local what=$1 deadline=$((SECONDS + 60))
    shift
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS > deadline)); then
            echo "error: $what: not within 60 s" >&2 || true
            tail -n 3 "$folder"/*.{out,log} >&2 || true
            return 1
        fi
        sleep 0.05
    done
}

# Below the range from which systems take ports for outgoing connections.
free_port() {
    local port
    while port=$((30000 + RANDOM % 2768)); do
        # Nobody answers there, and no other daemon of this cluster is about to take it.
        if [[ " ${taken[*]} " != *" $port "* ]] && ! (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            taken+=("$port")
            return
        fi
    done
}

# Several nodes share this host as a cluster's nodes would not, so neither memory nor CPUs are
# confined. cred_expire is also how long Slurm holds back a requeued job. The scripts make a job's
# ports of its id, so two clusters on one host must not count alike.
write_configuration() {
    local number taken=() host
    host=$(hostname --short)
    free_port
    cat <<END
ClusterName=mmloom
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${taken[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munged.socket,cred_expire=10
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
FirstJobId=${taken[0]}
KillWait=20
MessageTimeout=60
MailProg=/bin/true
END
    for ((number = 1; number <= nodes; number++)); do
        free_port
        echo "NodeName=node$number NodeHostname=$host NodeAddr=127.0.0.1 Port=${taken[-1]} CPUs=$cpus"
    done
    echo "PartitionName=main Nodes=node[1-$nodes] Default=YES PriorityTier=1"
    echo "PartitionName=urgent Nodes=node[1-$nodes] PriorityTier=2"
    if [[ $extra ]]; then cat "$extra/slurm.conf"; fi
}

node_names() {
    sed -n 's/^NodeName=\([^ ]*\) .*/\1/p' "$SLURM_CONF"
}

all_idle() {
    ! sinfo --noheader --Node --format=%T | grep --quiet --invert-match --line-regexp idle
}

check_host() {
    local program missing=()
    ((EUID == 0)) || die 'a Slurm on this host is started by root: sudo slurm/local.sh up'
    for program in munged slurmctld slurmd sbatch srun scontrol; do
        command -v "$program" >/dev/null || missing+=("$program")
    done
    if ((${#missing[@]})); then
        die "${missing[*]} not found; install them: apt-get install slurm-wlm munge"
    fi
    # The path of a socket has an end.
    ((${#folder} <= 80)) || die "--folder $folder: want a path of at most 80 characters"
}

up() {
    local node
    check_host
    if alive slurmctld; then
        tell ' already'
        return
    fi
    if [[ -e $folder ]]; then
        [[ -e $folder/slurm.conf ]] || die "--folder $folder: exists, and not by this command"
        take_down # what a crash has left
    fi
    mkdir --parents "${folder%/*}"
    mkdir --mode=755 "$folder" # any user of this host may submit jobs
    trap take_down EXIT
    mkdir --mode=700 "$folder/state"
    write_configuration >"$SLURM_CONF"
    if [[ -e $extra/gres.conf ]]; then cp "$extra/gres.conf" "$folder"; fi

    (umask 077 && head --bytes=128 /dev/urandom >"$folder/munged.key")
    # --force: in /tmp, munged would not trust the folder.
    munged --force --key-file="$folder/munged.key" --socket="$folder/munged.socket" \
        --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" \
        --seed-file="$folder/munged.seed" >"$folder/munged.out" 2>&1
    slurmctld >"$folder/slurmctld.out" 2>&1
    for node in $(node_names); do slurmd -N "$node" >"$folder/slurmd-$node.out" 2>&1; done
    await 'all nodes idle' all_idle
    tell
    if [[ $foreground ]]; then
        sleep infinity &
        trap 'kill %1; exit 0' TERM INT HUP
        wait
    fi
    trap - EXIT
}

# Says how to use the cluster.
tell() {
    local here=${BASH_SOURCE[0]%/*}
    cat <<END
Slurm is running${1:-} in $folder: $(sinfo --noheader --partition=main --format='%N, CPUs of each: %c')

    export SLURM_CONF=$SLURM_CONF
    sbatch $here/pt.sh digits --data DIR --output DIR --max-steps 20
    squeue
    $here/local.sh down${chosen:+ --folder $folder}
END
}

down() {
    [[ -e $folder ]] || die "no Slurm in $folder"
    [[ -O $folder && -e $folder/slurm.conf ]] || die "--folder $folder: not made by this command"
    take_down
    echo "Slurm is down."
}

# Ends the jobs, then the daemons, and removes the folder.
take_down() {
    local pidfile name
    trap - EXIT
    trap '' PIPE # who reads what is printed may have been killed
    if [[ $foreground ]]; then echo 'Ending the jobs, then the daemons.' || true; fi
    if alive slurmctld; then
        squeue --noheader --format=%A | xargs --no-run-if-empty scancel 2>/dev/null || true
        await 'an empty queue' no_jobs || true
    fi
    # Nodes first, munged last: all that end tell others so.
    for pidfile in "$folder"/{slurmd-*,slurmctld,munged}.pid; do
        name=$(basename "$pidfile" .pid)
        alive "$name" || continue
        kill "$(cat "$pidfile")" 2>/dev/null || true
        await "the end of $name" gone "$name" || kill -KILL "$(cat "$pidfile")" || true
    done
    rm -rf "$folder"
}

no_jobs() { [[ -z $(squeue --noheader) ]]; }
gone() { ! alive "$1"; }

command=${1:-}
folder=${XDG_RUNTIME_DIR:-/tmp}/mmloom-slurm chosen='' nodes=2 cpus='' extra='' foreground=''
case $command in
    up | down) shift ;;
    -h | --help)
        echo "$usage"
        exit
        ;;
    *) die "want up or down; see slurm/local.sh --help" ;;
esac
while (($#)); do
    case $1 in
        --foreground) foreground=yes ;;
        --folder | --nodes | --cpus | --extra)
            [[ ${2:-} ]] || die "$1: a value is missing"
            if [[ $1 == --folder ]]; then chosen=yes; fi
            declare "${1#--}=$2"
            shift
            ;;
        -h | --help)
            echo "$usage"
            exit
            ;;
        *) die "$1: no such option; see slurm/local.sh --help" ;;
    esac
    shift
done
[[ $nodes =~ ^[1-9][0-9]*$ ]] || die "--nodes $nodes: want a number from 1"
cpus=${cpus:-$((($(nproc) + nodes - 1) / nodes))}
[[ $cpus =~ ^[1-9][0-9]*$ ]] || die "--cpus $cpus: want a number from 1"
folder=$(realpath --canonicalize-missing "$folder")
export SLURM_CONF=$folder/slurm.conf
"$command"
