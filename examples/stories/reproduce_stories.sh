#!/bin/sh
# Reproduce the runs of docs/training-stories.md: sh examples/stories/reproduce_stories.sh DIRECTORY
# An hour or two on one core. The last run writes the model in examples/models/stories260K-fairy2i-w2.
set -eu
out=${1:?usage: sh examples/stories/reproduce_stories.sh DIRECTORY}
mkdir -p "$out"
export OMP_NUM_THREADS=1

train() {
    name=$1
    shift
    "${PYTHON:-python3}" "$(dirname "$0")/train_stories.py" --stories-file "$out/stories.npy" --out "$out/$name" "$@"
}

# the comparison: same data, same steps; the first run lets the teacher write the stories, the others share them
compared="--steps 3000 --decay cosine --batch 8 --length 256 --stories 4096 --text-share 0.25"
train w2-rms --stages 2 --row-multiplier rms $compared
train w2 --stages 2 --row-multiplier none $compared
train w1 --stages 1 --row-multiplier none $compared

# the embedded model: the best of them, trained on with windows as long as the context and half of each batch real text
longer="--row-multiplier rms --batch 4 --length 512 --stories 1024 --text-share 0.5"
train w2-rms-2 --start "$out/w2-rms" --steps 3000 --decay cosine \
    --learning-rate 5e-4 --float-learning-rate 5e-4 --seed 2 $longer
train w2-rms-3 --start "$out/w2-rms-2" --steps 1500 --decay exponential \
    --learning-rate 2e-4 --float-learning-rate 5e-4 --seed 3 $longer
