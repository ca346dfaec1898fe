#!/usr/bin/env bash
# scripts/tpu_pod.sh NAME ZONE [PRESET] [flags]: train on all hosts of a TPU pod slice of Google Cloud.
#
# Copies this checkout's commit to each host, installs the TPU's compiler and runtime, and starts one process on each.
# The processes find one another, and the first writes the run to its own disk. The same command with the same --run-dir
# resumes a run. Needs gcloud, logged in, and a pod slice that is up. A --corpus FILE must be on every host. Ctrl-C only
# ends gcloud; to stop the hosts, which then save the state:
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='pkill -TERM -f experiments/text_generation'
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n 's/^# //p' "$0" | head -n 1 >&2
    exit 2
fi
name=$1 zone=$2
shift 2

CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ -n "$(git status --porcelain --untracked-files=no)" ]; then
    echo "error: tracked files differ from the last commit, which is what goes to the hosts; commit or stash them" >&2
    exit 2
fi
archive=$(mktemp -t charlm_jax.XXXXXX)
trap 'rm -f "$archive"' EXIT
git archive --output="$archive" --format=tar HEAD

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}
gcloud compute tpus tpu-vm scp "$archive" "$name:charlm_jax.tar" --zone="$zone" --worker=all
on_all_hosts 'mkdir -p charlm_jax && rm -rf charlm_jax/charlm_jax charlm_jax/experiments && tar -xf charlm_jax.tar -C charlm_jax && cd charlm_jax &&
    scripts/run text_generation --help >/dev/null &&
    (.venv/bin/python -m ensurepip >/dev/null 2>&1; .venv/bin/python -m pip install --quiet -e ".[tpu]")'
on_all_hosts "cd charlm_jax && scripts/run text_generation ${*:+$(printf '%q ' "$@")} --distributed auto"
