#!/usr/bin/env bash
# Prepares ImageNet (ILSVRC 2012) as the TFDS data set `imagenet2012`, in array_record files, from the tar files that image-net.org gives
# to those who register:
#
#     launch/prepare_imagenet.sh TAR_DIR [DATA_DIR]
#
# TAR_DIR holds ILSVRC2012_img_train.tar (147,897,477,120 bytes) and ILSVRC2012_img_val.tar (6,744,924,160 bytes). DATA_DIR, also from
# TFDS_DATA_DIR, defaults to ~/tensorflow_datasets; it needs 160 GB. PYTHON chooses the interpreter. Give the same command again after
# anything went wrong: what is there and complete is checked and kept, what an interrupted run left half done is removed.
# Images that are already in folders need none of this: --config.dataset=folder:DIR with DIR/train/CLASS/* and DIR/validation/CLASS/*.
set -euo pipefail

if (($# < 1 || $# > 2)); then
    sed -n '2,11s/^# \{0,1\}//p' "$0"
    exit 2
fi
tar_dir=$(realpath -m "$1")
data_dir=$(realpath -m "${2:-${TFDS_DATA_DIR:-$HOME/tensorflow_datasets}}")
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$([[ -x $root/.venv/bin/python ]] && echo "$root/.venv/bin/python" || echo python3)}
# For tests, which bring small files:
need_bytes=${NEED_BYTES:-160000000000} train_bytes=${TRAIN_BYTES:-147897477120} val_bytes=${VAL_BYTES:-6744924160}
prepared=$data_dir/imagenet2012

die() {
    echo "$*" >&2
    exit 1
}

check_tar() { # path, bytes
    [[ -f $1 ]] || die "$1 is missing: download it from https://image-net.org/download-images (registration) into $tar_dir, then run this again."
    local size
    size=$(stat -c %s "$1")
    [[ $size == "$2" ]] || die "$1 has $size bytes and must have $2: the download is not complete; go on with it (wget -c), then run this again."
}

counts() {
    PYTHONPATH=$root "$python" - "$data_dir" <<'PY'
import sys

from efficientnet_jax.data.sources import open_source

for split, wanted in (('train', 1_281_167), ('validation', 50_000)):
    source = open_source('imagenet2012', split, sys.argv[1])
    if len(source) != wanted:
        sys.exit(f'{source.name} has {len(source):,} examples and must have {wanted:,}: remove {sys.argv[1]}/imagenet2012 and run this again.')
    source.read([0, wanted // 2, wanted - 1])
    print(f'{source.name}: {len(source):,} examples, {source.size_bytes() / 2**30:.1f} GiB')
PY
}

if ! compgen -G "$prepared/*/dataset_info.json" >/dev/null; then
    check_tar "$tar_dir/ILSVRC2012_img_train.tar" "$train_bytes"
    check_tar "$tar_dir/ILSVRC2012_img_val.tar" "$val_bytes"
    mkdir -p "$prepared" || die "DATA_DIR=$data_dir cannot be written; give another as the second argument."
    # What is incomplete may be another preparation's that runs: the lock is its, and ends with the process that holds it.
    exec {lock}>"$prepared/.lock"
    flock -n "$lock" || die "$prepared is being prepared by another process; wait for it, or stop it and run this again."
    rm -rf "${prepared:?}"/incomplete.* # what TFDS leaves of a run that was interrupted
    free_bytes=$(($(stat -f -c '%a * %S' "$prepared")))
    ((free_bytes >= need_bytes)) || die "DATA_DIR=$data_dir has $free_bytes bytes free and needs $need_bytes; give another as the second argument."
    echo "Writing $prepared: an hour or more." >&2
    "$python" - "$data_dir" "$tar_dir" <<'PY'
import sys

import tensorflow_datasets as tfds

data_dir, manual_dir = sys.argv[1:]
builder = tfds.builder('imagenet2012', data_dir=data_dir, file_format='array_record')
builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
PY
fi
counts
echo "Ready: --config.data_dir=$data_dir. A minival of 25,022 images: --config.train_split='train[:-25022]' --config.eval_split='train[-25022:]'."
