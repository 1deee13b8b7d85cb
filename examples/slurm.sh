#!/bin/bash
# 1024 seeds of Pendulum on four nodes, one task for all GPUs of a node: sbatch examples/slurm.sh
# A job that is requeued, because a node was lost, or submitted again after its time was over, continues the run.
#SBATCH --job-name=jaxddpg
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120

set -euo pipefail
. .venv/bin/activate
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # since Slurm 22.05 srun does not take it from the job
run=runs/pendulum_1024 # on a file system that all nodes share

if [ -e "$run/config.yaml" ] || [ -e "$run/sweep.yaml" ]; then
    srun jaxddpg resume "$run" --distributed
else
    srun jaxddpg train configs/pendulum.yaml --num-seeds 1024 --run-dir "$run" --distributed
fi
