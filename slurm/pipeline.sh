#!/bin/bash
# Submit preprocessing, training and evaluation as three jobs, each starting when the one before has succeeded.
#
#   slurm/pipeline.sh NAME PREPROCESS-ARGUMENTS [-- TRAIN-ARGUMENTS [-- EVALUATE-ARGUMENTS]]
#   slurm/pipeline.sh book --sources audiobook/ -- --config configs/babble.yaml -- --split test
#
# Run it on a login node. The arguments go to `babble preprocess`, `babble train` and `babble evaluate`; the folders
# shards/NAME and runs/NAME are filled in. Three variables hold flags for sbatch, which override the #SBATCH lines of
# each job's script:
#
#   PREPROCESS_FLAGS   of slurm/preprocess.sh, e.g. '--nodes=4 --cpus-per-task=32' or '--partition=cpu'
#   TRAIN_FLAGS        of slurm/train.sh, e.g. '--nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --time=2-00:00:00'
#   EVALUATE_FLAGS     of slurm/evaluate.sh, e.g. '--cpus-per-task=8'
#
#   TRAIN_FLAGS='--partition=gpu' slurm/pipeline.sh book --sources audiobook/ -- --config configs/babble.yaml
set -euo pipefail

usage="usage: [TRAIN_FLAGS='--nodes=2 ...'] slurm/pipeline.sh NAME --sources PATH... [-- --config FILE ... [-- ...]]"
[[ $# -gt 1 && $1 != -* ]] || { echo "$usage" >&2; exit 2; }
name=$1
shift
preprocess=() train=() evaluate=()
for part in preprocess train evaluate; do
    declare -n arguments=$part
    while (($#)) && [ "$1" != -- ]; do
        arguments+=("$1")
        shift
    done
    if (($#)); then shift; fi
done
((${#preprocess[@]})) || { echo "$usage" >&2; exit 2; }
command -v sbatch >/dev/null || { echo "slurm/pipeline.sh: sbatch not found: run this on a login node." >&2; exit 1; }
scripts=$(cd "$(dirname "$0")" && pwd)
after=(sbatch --parsable --kill-on-invalid-dep=yes)

# The variables hold several flags each: they have to be split.
# shellcheck disable=SC2086
{
    first=$(sbatch --parsable ${PREPROCESS_FLAGS:-} "$scripts/preprocess.sh" "${preprocess[@]}" --out "shards/$name")
    second=$("${after[@]}" --dependency=afterok:"$first" ${TRAIN_FLAGS:-} \
        "$scripts/train.sh" "${train[@]}" --data.shards "shards/$name" --name "$name")
    third=$("${after[@]}" --dependency=afterok:"$second" ${EVALUATE_FLAGS:-} \
        "$scripts/evaluate.sh" "runs/$name" "${evaluate[@]}")
}
cat <<END
preprocess  job $first, log slurm-$first.out, then shards/$name/report.txt
train       job $second, log slurm-$second.out, then runs/$name: metrics.jsonl, samples/
evaluate    job $third, log slurm-$third.out, then runs/$name: evaluation.json, evaluation.png, babble.wav
to follow:  squeue -j $first,$second,$third      to cancel: scancel $first $second $third
END
