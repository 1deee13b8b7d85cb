#!/bin/bash
# 1024 seeds of Pendulum on four nodes, one process each: sbatch examples/slurm.sh
# Sent again after a node was lost, or the time was over, it goes on with the run.
#SBATCH --job-name=jaxddpg
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120

set -euo pipefail
. .venv/bin/activate
run=runs/pendulum_1024 # on a file system that all nodes share

if [ -e "$run/config.yaml" ]; then
    srun jaxddpg resume "$run" --distributed
else
    srun jaxddpg train configs/pendulum.yaml --num-seeds 1024 --run-dir "$run" --distributed
fi
