#!/bin/bash
# Measure a run and let it babble: RUN is a run's folder, what follows is what `python -m babble.evaluate` takes.
#
#   sbatch slurm/evaluate.sh runs/book --split validation
#
# It leaves evaluation.json and evaluation.png, and a minute of babble.wav, in the run's folder.
#SBATCH --job-name=babble-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --mem-per-cpu=4G
#SBATCH --time=4:00:00
#SBATCH --requeue
#SBATCH --open-mode=append

script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=\([^ ]*\).*/\1/p' | head -n 1)
project=$(cd "$(dirname "$script")/.." && pwd)
source "$project/slurm/common.sh" || exit 1

run=${1:?name the folder of a run: sbatch slurm/evaluate.sh runs/NAME}
shift
find_python torch webdataset babble
say_job
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
"$python" -u -m babble.evaluate "$run" --json "$run/evaluation.json" --figure "$run/evaluation.png" "$@" || exit
exec "$python" -u -m babble.generate "$run" --seconds 60 --out "$run/babble.wav"
