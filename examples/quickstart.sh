#!/bin/sh
# The main job in one pipe, on the digits that come with scikit-learn: nothing is downloaded.
set -eu
cd "${1:-$(mktemp -d)}"
kdcompress train-teacher --model resnet32_cifar --data digits --epochs "${EPOCHS:-15}" \
  | kdcompress distill - --method reskd --student resnet8_cifar,width=0.5 --epochs "${EPOCHS:-15}" \
  | kdcompress add-res-student - --arch resnet8_cifar,width=0.5 --epochs "${EPOCHS:-15}" \
  | kdcompress gate-calibrate - --max-drop 0.5 \
  | kdcompress eval -
echo "The runs are in $PWD/runs." >&2
