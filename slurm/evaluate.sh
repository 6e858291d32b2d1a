#!/bin/bash
# Evaluate a run and generate a minute of speech. RUN is a run folder; the other arguments go to `babble evaluate`.
#
#   sbatch slurm/evaluate.sh RUN [--split validation ...]
#   sbatch slurm/evaluate.sh runs/book --split test
#
# Writes evaluation.json, evaluation.png and babble.wav into the run folder.
#SBATCH --job-name=babble-evaluate
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --mem-per-cpu=4G
#SBATCH --time=4:00:00
#SBATCH --requeue
#SBATCH --open-mode=append

# Slurm runs a copy of this file in its spool directory, so the project is found from the path that was submitted.
script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*/slurm/evaluate\.sh\).*|\1|p' | head -n 1)
project=$(cd "$(dirname "$script")/.." && pwd)
source "$project/slurm/common.sh" || exit 1

run=${1:?name a run folder: sbatch slurm/evaluate.sh runs/NAME}
shift
find_python torch webdataset babble
print_job
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
# A flag given twice is refused, so these yield to the user's own.
for default in "--json=$run/evaluation.json" "--figure=$run/evaluation.png"; do
    [[ " $*" == *" ${default%%=*}"[\ =]* ]] || set -- "$default" "$@"
done
"$python" -u -m babble.evaluate "$run" "$@" || exit
exec "$python" -u -m babble.generate "$run" --seconds 60 --out "$run/babble.wav"
