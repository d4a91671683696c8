#!/bin/bash
#SBATCH --job-name=mmloom-pt
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Runs MM-PT: sbatch [sbatch's options] slurm/pt.sh PRESET --data DIR --output DIR [option …]

# sbatch runs a copy of this file from a spool folder; Slurm knows the original's path.
command=$(scontrol show job "${SLURM_JOB_ID:?use sbatch}" | sed -n 's/^ *Command=//p')
exec bash "${command%%/pt.sh*}/train.sh" pt "$@"
