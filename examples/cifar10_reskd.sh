#!/bin/sh
# ResKD on CIFAR-10 with a given ResNet-56 teacher, three seeds, and table and figure in examples/studies/README.md
# (pip install 'kdcompress[plot]').
#
#   examples/cifar10_reskd.sh DATA TEACHER.safetensors [OUT]
#
# EPOCHS are those of each member; the last two of one cascade are trained five times as long, too, and the res-students
# of two pairs four and eight times. JOBS trainings run side by side: two on two cores. A run that was cut off goes on
# when the script is started again.
set -eu
here=$(dirname "$0")
epochs=${EPOCHS:-30}
python "$here/studies/reskd_study.py" "${3:-runs/reskd}" --data "$1" --teacher "$2" --arch resnet56_cifar,shortcut=A \
    --epochs "$epochs" --long-epochs "$((5 * epochs))" --pair-epochs "$((4 * epochs))" "$((8 * epochs))" \
    --jobs "${JOBS:-1}" --table "$here/studies/README.md" --plot "$here/results/reskd.svg"
