#!/usr/bin/env bash
# Snakemake runs this in the folder of the workflow, inside the environment it has just made: the package comes from here.
set -euo pipefail
if ! grep -qs '^name = "minirec"' pyproject.toml; then
    echo "environment-vllm.post-deploy.sh: run snakemake in the folder of minirec, not in $PWD" >&2
    exit 1
fi
python -m pip install --no-deps --editable "$PWD"
