#!/bin/sh
# The whole pipeline on CIFAR-10 with a given ResNet-56 teacher; the table in README.md is made from what it leaves.
#
#   examples/cifar10_pipeline.sh DATA TEACHER.safetensors [OUT]
#
# DATA is a folder with train/CLASS/… and test/CLASS/…. A run that was cut off goes on when the script is started again.
set -eu
data=$1 teacher=$2 out=${3:-runs/cifar10}
epochs=${EPOCHS:-10}
arch=resnet56_cifar,shortcut=A
mkdir -p "$out"

kdcompress distill "$teacher" --arch "$arch" --data "$data" --method reskd --student resnet8_cifar,shortcut=A \
    --logit-loss mse --from-teacher --epochs "$epochs" --out "$out/s0" --resume \
  | tee "$out/s0.json" \
  | kdcompress add-res-student - --arch resnet20_cifar,shortcut=A --logit-loss mse --from-teacher --epochs "$epochs" \
        --out "$out/s0-r1" --resume \
  > "$out/s0-r1.json"

kdcompress eval "$teacher" --arch "$arch" --data "$data" > "$out/eval-teacher.json"
for run in s0 s0-r1; do
    kdcompress eval "$out/$run" > "$out/eval-$run.json"
done
for target in "--max-drop 0.5" "--target-macs 0.2" "--target-macs 0.3"; do
    name=gated-$(echo "$target" | tr -d -- '- ')
    # shellcheck disable=SC2086 # two words are meant
    kdcompress gate-calibrate "$out/s0-r1" $target --out "$out/$name" --resume | kdcompress eval - > "$out/eval-$name.json"
done
