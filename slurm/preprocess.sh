#!/bin/bash
# Preprocess recordings into shards. The arguments go to `babble preprocess`.
#
#   sbatch slurm/preprocess.sh --sources audiobook/ --out shards/book
#   sbatch --nodes=4 --cpus-per-task=32 slurm/preprocess.sh ...     a Ray cluster over four nodes
#   sbatch --array=0-7 slurm/preprocess.sh ...                      eight independent jobs, without ports between nodes:
#                                                                   each does its share, the last one writes the shards
#
# If it was killed, requeued or submitted again, it does only what is missing. The shards are the same to the byte in
# each case. SHARES=10 sbatch --array=3,7 slurm/preprocess.sh ... repeats two shares of an array of ten.
#SBATCH --job-name=babble-preprocess
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=2G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append

# Slurm runs a copy of this file in its spool directory, so the project is found from the path that was submitted.
script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*/slurm/preprocess\.sh\).*|\1|p' | head -n 1)
project=$(cd "$(dirname "$script")/.." && pwd)
source "$project/slurm/common.sh" || exit 1

find_python ray pycodec2 av soxr tqdm jobs
print_job
cores=${SLURM_CPUS_PER_TASK:-1}
nodes=$SLURM_JOB_NUM_NODES
[ "${SLURM_NTASKS_PER_NODE:-1}" = 1 ] || die "one process per node starts all others there: remove --ntasks-per-node."

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    ((nodes == 1)) || die "each job of an array works alone: remove --nodes."
    # For a part of an array (--array=3,7), Slurm counts only that part.
    shares=${SHARES:-$SLURM_ARRAY_TASK_COUNT}
    exec "$python" -u -m jobs.preprocess --workers "$cores" --share "$SLURM_ARRAY_TASK_ID/$shares" "$@"
fi
((nodes > 1)) || exec "$python" -u -m jobs.preprocess --workers "$cores" "$@"

start_ray
# The exit code of this last command is that of the job. Slurm ends the Ray cluster with this shell.
"$python" -u -m jobs.preprocess --address "$address" --nodes "$nodes" "$@"
