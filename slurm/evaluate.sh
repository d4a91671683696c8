#!/bin/bash
#SBATCH --job-name=mmloom-evaluate
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# Evaluates a run, its questions divided among one rank per GPU: sbatch [sbatch's options] slurm/evaluate.sh --run DIR --data DIR [option …]

# sbatch runs a copy of this file from a spool folder; Slurm knows the original's path.
command=$(scontrol show job "${SLURM_JOB_ID:?use sbatch}" | sed -n 's/^ *Command=//p')
exec bash "${command%%/evaluate.sh*}/train.sh" evaluate "$@"
