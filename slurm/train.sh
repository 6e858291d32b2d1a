#!/bin/bash
# Train a network, one process per GPU. The arguments go to `babble train`.
#
#   sbatch slurm/train.sh --config configs/babble.yaml --data.shards shards/book --name book
#   sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 slurm/train.sh ...    four nodes with eight GPUs each
#   sbatch --partition=cpu --gpus-per-node=0 --nodes=2 slurm/train.sh ...        two nodes without GPU, one process each
#
# Two minutes before its time limit, or when a job of higher priority needs the nodes, it saves a checkpoint and is
# requeued. It then resumes in the same run folder and W&B run, with the same result as without the interruption (on a
# GPU to the bit only with --compute.deterministic true). docs/cluster.md has a section on failures.
#SBATCH --job-name=babble-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem-per-cpu=4G
#SBATCH --time=1-00:00:00
#SBATCH --signal=SIGUSR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

# Slurm runs a copy of this file in its spool directory, so the project is found from the path that was submitted.
script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*/slurm/train\.sh\).*|\1|p' | head -n 1)
project=$(cd "$(dirname "$script")/.." && pwd)
source "$project/slurm/common.sh" || exit 1

find_python torch pytorch_lightning webdataset babble
gpus=${SLURM_GPUS_ON_NODE:-0}
tasks=${SLURM_NTASKS_PER_NODE:?submit with --ntasks-per-node, one process per GPU}
((gpus == 0 || gpus == tasks)) ||
    die "$gpus GPUs but $tasks processes per node: submit with --gpus-per-node=$gpus --ntasks-per-node=$gpus."
logs=logs/$SLURM_JOB_NAME-$job
mkdir -p "$logs" || die "cannot create $logs in $PWD."
print_job
echo "logs     $PWD/$logs/rank-*.log    to follow: tail -F $logs/rank-0.log"

# srun does not inherit --cpus-per-task, and without a limit every process of torch uses all cores of the node.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}

# An empty handler keeps this shell alive when the processes are asked to save. `trap '' ...` would also make srun and
# the processes ignore the signals.
trap : TERM USR1
: >"$logs/srun.log"
srun --ntasks-per-node="$tasks" --kill-on-bad-exit=1 --open-mode=append --output="$logs/rank-%t.log" \
    "$python" -u -m babble.train "$@" 2> >(tee -a "$logs/srun.log" >&2)
code=$?
trap - TERM USR1

# Exit code 128 + a signal's number: training saved and stopped as requested, or had not started yet. If one process
# fails, srun ends the others with SIGTERM and returns the highest code of all, so search for the first with another
# cause.
first=$(grep ' task' "$logs/srun.log" |
    grep -v -e 'exit code 1\(30\|38\|43\)' -e Terminated -e 'User defined signal 1' |
    sed -n 's/.* task[s]* \([0-9]*\).*: \(.*\)/\1 \2/p' | head -n 1)
if [ -n "$first" ]; then
    rank=${first%% *}
    echo "The first process to end was rank $rank: ${first#* }. Last lines of $logs/rank-$rank.log:"
    tail -n 30 "$logs/rank-$rank.log"
    echo "Fix the cause and submit the same job again. With --name, it resumes from the last checkpoint."
    exit "$code"
fi
tail -n 3 "$logs/rank-0.log"
if ((code == 138 || code == 143)) && is_running; then requeue; fi
exit $code
