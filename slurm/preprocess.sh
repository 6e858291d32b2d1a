#!/bin/bash
# Recordings -> shards: what follows the script's name is what `python -m jobs.preprocess` takes.
#
#   sbatch slurm/preprocess.sh --sources audiobook/ --out shards/book
#   sbatch --nodes=4 --cpus-per-task=32 slurm/preprocess.sh ...     a Ray cluster over four nodes
#   sbatch --array=0-7 slurm/preprocess.sh ...                      eight jobs that need no port between nodes: each does
#                                                                   its share, the last to end writes the shards
#
# Killed, requeued or submitted again it does what is missing; the bytes are the same however it was run.
#SBATCH --job-name=babble-preprocess
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=2G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append

# Slurm runs a copy of this file from its spool: it alone knows where the project lies.
script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=\([^ ]*\).*/\1/p' | head -n 1)
project=$(cd "$(dirname "$script")/.." && pwd)
source "$project/slurm/common.sh" || exit 1

find_python ray pycodec2 soundfile webdataset jobs
say_job
cores=${SLURM_CPUS_PER_TASK:-1}
nodes=$SLURM_JOB_NUM_NODES
[ "${SLURM_NTASKS_PER_NODE:-1}" = 1 ] || die "one process a node starts all others there: leave --ntasks-per-node away."

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    ((nodes == 1)) || die "every job of an array works alone: leave --nodes away."
    # Part of an array again (--array=3,7): say of how many, with SHARES=10 sbatch ...
    shares=${SHARES:-$SLURM_ARRAY_TASK_COUNT}
    exec "$python" -u -m jobs.preprocess --workers "$cores" --share "$SLURM_ARRAY_TASK_ID/$shares" "$@"
fi
((nodes > 1)) || exec "$python" -u -m jobs.preprocess --workers "$cores" "$@"

start_ray
"$python" -u -m jobs.preprocess --address "$address" --nodes "$nodes" "$@"
# The code is the job's; Slurm ends what is left of Ray with this shell. `ray stop` would end other jobs' Ray too.
