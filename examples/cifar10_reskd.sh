#!/bin/sh
# ResKD on CIFAR-10 with a given ResNet-56 teacher, three seeds, and the table in examples/README.md.
#
#   examples/cifar10_reskd.sh DATA TEACHER.safetensors [OUT]
#
# A run that was cut off goes on when the script is started again.
set -eu
here=$(dirname "$0")
python "$here/reskd_study.py" "${3:-runs/reskd}" --data "$1" --teacher "$2" --arch resnet56_cifar,shortcut=A \
    --epochs "${EPOCHS:-30}" --jobs "${JOBS:-1}" --table "$here/README.md"
