#!/usr/bin/env bash
# Builds the image of Dockerfile without Docker or a registry, and runs the tests of pods in it: as root on Debian 12,
# with 20 GB of disk, in some ten minutes. The base image is made of Debian's packages, which have the same Python; it
# stands in for the real one under its name, so what is shown is that the Dockerfile's own steps work.
#     apt-get install buildah debootstrap && bash tests/cluster/image.sh
set -euo pipefail
cd "$(dirname "$0")/.."
base=$(sed -n 's/^FROM //p' Dockerfile)
folder=$(mktemp -d)
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$folder/root"
ln -s python3 "$folder/root/usr/bin/python"
scratch=$(buildah from --isolation chroot scratch)
buildah add --quiet "$scratch" "$folder/root" /
buildah commit --quiet --rm "$scratch" "docker.io/library/$base"
buildah bud --isolation chroot --pull-never --volume /etc/ssl/certs:/etc/ssl/certs:ro --tag srcnn:0.2.0 .
container=$(buildah from --isolation chroot --pull-never srcnn:0.2.0)
trap 'buildah rm "$container" >/dev/null; rm -rf "$folder"' EXIT
SRCNN_IMAGE=$(buildah mount "$container") .venv/bin/python -m pytest tests/cluster/test_pods.py
