#!/bin/bash
# Sweep over settings: what follows the script's name is what `python -m babble.tune` takes; --name is needed.
#
#   sbatch slurm/tune.sh --config configs/tune.yaml --data.shards shards/book --name sweep
#   sbatch --nodes=4 --cpus-per-task=32 --gpus-per-node=8 slurm/tune.sh ...      trials on all cores and GPUs of four nodes
#
# Two minutes before its time is over, or when a more urgent job wants the nodes, the trials save, the job is requeued, and
# the sweep goes on: finished trials are kept, the others go on from their checkpoints.
#SBATCH --job-name=babble-tune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=4G
#SBATCH --time=1-00:00:00
#SBATCH --signal=B:SIGUSR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

# Slurm runs a copy of this file from its spool: it alone knows where the project lies.
script=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's/^ *Command=\([^ ]*\).*/\1/p' | head -n 1)
project=$(cd "$(dirname "$script")/.." && pwd)
source "$project/slurm/common.sh" || exit 1

find_python torch pytorch_lightning webdataset ray optuna babble
say_job
[ "${SLURM_NTASKS_PER_NODE:-1}" = 1 ] || die "one process a node starts all others there: leave --ntasks-per-node away."
[[ " $* " =~ " --name " || " $* " =~ " --name=" || " $* " =~ " --resume " ]] ||
    die "give the sweep a --name, so that it goes on under it."
start_ray

# This shell and the sweep get the signals that tell it to stop; the shell waits for it and does nothing else with them.
"$python" -u -m babble.tune --address "$address" "$@" &
tune=$!
trap 'kill -TERM $tune' TERM USR1
wait $tune
code=$?
# A signal ends `wait` early, with a code of its own.
while kill -0 $tune 2>/dev/null; do wait $tune; code=$?; done
trap - TERM USR1
if ((code == 138 || code == 143)) && is_running; then requeue; fi
exit $code
