#!/bin/bash
#SBATCH --job-name=mmloom-rlhf
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Runs RLHF, the second part of MM-IT: sbatch [sbatch's options] slurm/rlhf.sh PRESET --data DIR --output DIR [option …]

# sbatch runs a copy of this file from a spool folder; Slurm knows the original's path.
command=$(scontrol show job "${SLURM_JOB_ID:?use sbatch}" | sed -n 's/^ *Command=//p')
exec bash "${command%%/rlhf.sh*}/train.sh" rlhf "$@"
