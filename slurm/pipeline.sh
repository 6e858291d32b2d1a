#!/bin/bash
# The whole way in one command, on a login node: preprocess, then train, then evaluate and babble.
#
#   slurm/pipeline.sh NAME --sources audiobook/ -- --config configs/babble.yaml -- --split test
#
# What `python -m jobs.preprocess` takes, then what `python -m babble.train` takes, then what `python -m babble.evaluate`
# takes, with a -- between them; shards/NAME and runs/NAME are filled in. sbatch's own flags for each of the three jobs:
# PREPROCESS_FLAGS, TRAIN_FLAGS, EVALUATE_FLAGS.
set -euo pipefail

usage="usage: [TRAIN_FLAGS='--nodes=2 ...'] slurm/pipeline.sh NAME --sources PATH... [-- --config FILE ... [-- ...]]"
[[ $# -gt 1 && $1 != -* ]] || { echo "$usage" >&2; exit 2; }
name=$1
shift
preprocess=() train=() evaluate=()
for part in preprocess train evaluate; do
    declare -n words=$part
    while (($#)) && [ "$1" != -- ]; do
        words+=("$1")
        shift
    done
    if (($#)); then shift; fi
done
((${#preprocess[@]})) || { echo "$usage" >&2; exit 2; }
command -v sbatch >/dev/null || { echo "slurm/pipeline.sh: there is no sbatch here: is this a login node?" >&2; exit 1; }
scripts=$(cd "$(dirname "$0")" && pwd)
after=(sbatch --parsable --kill-on-invalid-dep=yes)

# Flags are words: they are meant to be split.
# shellcheck disable=SC2086
{
    first=$(sbatch --parsable ${PREPROCESS_FLAGS:-} "$scripts/preprocess.sh" "${preprocess[@]}" --out "shards/$name")
    second=$("${after[@]}" --dependency=afterok:"$first" ${TRAIN_FLAGS:-} \
        "$scripts/train.sh" "${train[@]}" --data.shards "shards/$name" --name "$name")
    third=$("${after[@]}" --dependency=afterok:"$second" ${EVALUATE_FLAGS:-} \
        "$scripts/evaluate.sh" "runs/$name" "${evaluate[@]}")
}
cat <<END
preprocess  job $first   slurm-$first.out   then shards/$name/report.txt
train       job $second   slurm-$second.out   then runs/$name: metrics.jsonl, samples/
evaluate    job $third   slurm-$third.out   then runs/$name: evaluation.json, evaluation.png, babble.wav
to look:    squeue -j $first,$second,$third      to stop: scancel $first $second $third
END
