#!/usr/bin/env bash
# A packed CT bundle in MONAI Deploy's App SDK, in an environment that is made on the first call.
#
#   bash scripts/monai_deploy.sh BUNDLE SERIES OUTPUT_DIR
#   bash scripts/monai_deploy.sh --set_up    only the environment
#
# BUNDLE: the folder of a packed bundle with weights, models/model.pt or model.ts. SERIES: a folder with a DICOM CT
# series, with square pixels. OUTPUT_DIR gets segmentation.nii.gz.
#
# The environment is .venv-deploy: the versions of requirements-deploy.txt on top of .venv, which is made first where it
# is missing. PYTHON=: see setup_env.sh.
set -euo pipefail
USE_CURRENT_ENV=0

usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

case "$#:${1:-}" in
0:) usage >&2 && exit 1 ;;
*:-h | *:--help) usage && exit ;;
1:--set_up | 3:[!-]*) ;;
*) printf '\nError: expected BUNDLE SERIES OUTPUT_DIR, or --set_up alone. See monai_deploy.sh --help.\n' >&2 && exit 1 ;;
esac

source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

project="$environment"
PYTHON="$project/bin/python"
environment_name=.venv-deploy
requirements_name=requirements-deploy.txt

install_packages() {
    logged "$environment/bin/python" -m pip install --no-deps --requirement "$requirements"
    # Behind pip, which would take what is there for its own; by its name, the first such file that Python reads.
    "$project/bin/python" -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
        >"$(echo "$environment"/lib/python3.*/site-packages)/_project.pth"
}

source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"
[ "$1" != --set_up ] || exit 0
ulimit -s 32768 2>/dev/null || true # what Holoscan asks for
exec python "$root/scripts/monai_deploy/segment.py" "$@"
