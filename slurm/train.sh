#!/bin/bash
# Train a network: what follows the script's name is what `python -m babble.train` takes. One process a GPU.
#
#   sbatch slurm/train.sh --config configs/babble.yaml --data.shards shards/book --name book
#   sbatch --nodes=4 --ntasks-per-node=8 --gpus-per-node=8 slurm/train.sh ...         four nodes of eight GPUs
#   sbatch --partition=cpu --gpus-per-node=0 --nodes=2 slurm/train.sh ...             no GPU, one process on each of two
#
# Two minutes before its time is over, or when a more urgent job wants the nodes, it saves, is requeued, and goes on in the
# same run folder and W&B run as if it had never stopped. docs/cluster.md says what to do when something goes wrong.
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

# Slurm runs a copy of this file from its spool: it alone knows where the project lies.
script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=\([^ ]*\).*/\1/p' | head -n 1)
project=$(cd "$(dirname "$script")/.." && pwd)
source "$project/slurm/common.sh" || exit 1

find_python torch pytorch_lightning webdataset babble
gpus=${SLURM_GPUS_ON_NODE:-0}
tasks=${SLURM_NTASKS_PER_NODE:?give sbatch --ntasks-per-node, one for each GPU}
((gpus == 0 || gpus == tasks)) ||
    die "$gpus GPUs but $tasks processes a node: give sbatch --gpus-per-node=$gpus --ntasks-per-node=$gpus."
logs=logs/$SLURM_JOB_NAME-$job
mkdir -p "$logs" || die "can't make $logs in $PWD."
say_job
echo "logs     $PWD/$logs/rank-*.log    to follow: tail -F $logs/rank-0.log"

# srun no longer takes it over, and torch would use all cores of the node in every process.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}

# A handler that does nothing, so that this shell outlives the signals that tell the processes to save.
trap : TERM USR1
: >"$logs/srun.log"
srun --ntasks-per-node="$tasks" --kill-on-bad-exit=1 --open-mode=append --output="$logs/rank-%t.log" \
    "$python" -u -m babble.train "$@" 2> >(tee -a "$logs/srun.log" >&2)
code=$?
trap - TERM USR1

# 128 + a signal's number: saved and stopped when asked, or not begun yet. But where one process fails, srun ends the others
# by SIGTERM too, and its own code is the highest of all: so the first one that ended otherwise is looked for.
first=$(grep ' task' "$logs/srun.log" | grep -v -e 'exit code 1\(30\|38\|43\)' -e Terminated -e 'User defined signal 1' |
    sed -n 's/.* task[s]* \([0-9]*\).*: \(.*\)/\1 \2/p' | head -n 1)
if [ -n "$first" ]; then
    rank=${first%% *}
    echo "The first process to end was rank $rank: ${first#* }. The end of $logs/rank-$rank.log:"
    tail -n 30 "$logs/rank-$rank.log"
    echo "Mend the cause and submit the same again: it goes on from the last checkpoint, if --name was given."
    exit "$code"
fi
tail -n 3 "$logs/rank-0.log"
if ((code == 138 || code == 143)) && is_running; then requeue; fi
exit $code
