#!/usr/bin/env bash
# MONAI Label's server with the bundles of this collection, in an environment that is made on the first call.
#
#   bash scripts/monai_label.sh STUDIES NAME=WEIGHTS [NAME=WEIGHTS ...] [OPTION ...]
#   bash scripts/monai_label.sh --set_up    only the environment
#
# STUDIES: the folder with the images, where MONAI Label also keeps labels; or the address of a DICOMweb server, whose
# log-in stands in the environment, see docs/monai_label.md; or, with MONAI_LABEL_DATASTORE=dsa set, that of a Digital
# Slide Archive. NAME=WEIGHTS: a bundle, and the model.pt of a training of it, with the model.json that training wrote
# beside it.
#
#   --port 8000       of the server, on this machine alone
#   --app_dir DIR     where the packed bundles go, and what is trained here; runs/monai_label by default
#   --classifier FILE the model.pt of a classifier that judges what the detector finds
#   --subtype_classifier FILE  that of one that names kinds of its mitotic figures
#   --mpp 0.25        micrometres a pixel of slides and regions that do not say it; without it they are refused
#
# The environment is .venv-monailabel, with the versions of requirements-monailabel.txt, never the project's own.
# PYTHON=: see setup_env.sh; here 3.11 or 3.12.
set -euo pipefail
environment_name=.venv-monailabel
requirements_name=requirements-monailabel.txt
versions="3.11 or 3.12"
USE_CURRENT_ENV=0

fail_usage() {
    printf '\nError: %s See monai_label.sh --help.\n' "$1" >&2
    exit 1
}

usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

if [ $# = 0 ]; then
    usage >&2
    exit 1
fi
for argument in "$@"; do
    case "$argument" in -h | --help)
        usage
        exit
        ;;
    # the first call makes an environment, which takes minutes: what no option is, is refused before that
    --port | --port=* | --app[_-]dir | --app[_-]dir=* | --mpp | --mpp=*) ;;
    --classifier | --classifier=* | --subtype[_-]classifier | --subtype[_-]classifier=*) ;;
    --set_up) [ $# = 1 ] || fail_usage "--set_up goes alone." ;;
    --*) fail_usage "${argument%%=*}: no such option of monai_label.sh." ;;
    esac
done

install_packages() {
    local install=("$environment/bin/python" -m pip install)
    logged "${install[@]}" --requirement <(grep -v -e '--no-deps$' "$requirements")
    logged "${install[@]}" --no-deps $(sed -n 's/ *# --no-deps$//p' "$requirements")
}

source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
[ "${1:-}" != --set_up ] || exit 0
export MPLBACKEND=agg # no display is needed
PYTHONPATH="$root:$root/scripts" exec python -m monai_label.serve "$@"
