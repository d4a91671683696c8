#!/bin/bash
#SBATCH --job-name=mmloom-init
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Pre-trains a Q-Former or a P-Former, before MM-PT: sbatch [sbatch's options] slurm/init.sh PRESET --data DIR --output DIR [option …]

# sbatch runs a copy of this file from a spool folder; Slurm knows the original's path.
command=$(scontrol show job "${SLURM_JOB_ID:?use sbatch}" | sed -n 's/^ *Command=//p')
exec bash "${command%%/init.sh*}/train.sh" init "$@"
