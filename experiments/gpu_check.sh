#!/bin/bash
# Fast certified training on one GPU, in pieces: CIFAR-10 at 8/255, CNN-7, 70 epochs with and without the
# initialisation and the regularizers of Shi et al. 2021, then their 160 epochs.
#
#   python -m experiments.pack --dataset=cifar10 --data_dir=~/tensorflow_datasets --out=packed
#   experiments/gpu_check.sh packed runs/gpu 8       (again and again, until it says that all is done)
#
# Each call works for so many minutes and saves; the next goes on where it stopped. When a run is
# finished it is certified on all test images, and a table compares the runs.
set -u
data=${1:?folder of the packed dataset} out=${2:?folder for the runs} minutes=${3:-8}
end=$(( $(date +%s) + 60 * minutes ))
left() { echo $(( (end - $(date +%s)) / 60 )); }
finished() { python -m experiments.done --run="$out/$name" --stage="$1"; }
train() {
  local name=$1; shift
  finished certified && return
  [ "$(left)" -ge 1 ] || exit 0
  python -m experiments.train "$@" --data_dir="$data" --out="$out/$name" --max_minutes="$(left)" || exit 1
  finished trained || exit 0
  python -m experiments.certify --run="$out/$name" --data_dir="$data" --methods=ibp --batch_size=1000 || exit 1
  finished certified || exit 1
}
train short --config=shi2021_cifar10_short
train short_vanilla --config=shi2021_cifar10_short --initialization=fan_in --regularizer_weight=0
train long --config=shi2021_cifar10
python -m experiments.compare --runs="$out/short,$out/short_vanilla,$out/long" --out="$out/compare" && echo "all is done"
