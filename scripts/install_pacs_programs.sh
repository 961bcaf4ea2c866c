#!/usr/bin/env bash
# The programs that the tests with marker `pacs` need: Orthanc, a PACS, and independent readers of what is stored there.
#
#   bash scripts/install_pacs_programs.sh
#   bash scripts/test.sh -m pacs
#
# Debian's packages, as root or by sudo, and dcmqi of PyPI into the project's environment. What is there is left alone.
# PYTHON= and USE_CURRENT_ENV=1: see setup_env.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

dcmqi="dcmqi==1.5.7"
missing=()
for package in orthanc orthanc-dicomweb dcmtk dicom3tools plastimatch; do
    [[ "$(dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null)" == *" installed" ]] || missing+=("$package")
done

if [ "${#missing[@]}" -gt 0 ]; then
    command -v apt-get >/dev/null || fail "there is no apt-get: install what Debian calls ${missing[*]}."
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    printf 'Installing %s ...\n' "${missing[*]}"
    : >"$log"
    logged "${as_root[@]}" apt-get update
    # RUNLEVEL: Orthanc does not become a service of this machine, the tests start their own
    logged "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install --yes --no-install-recommends "${missing[@]}"
fi
python -m pip show --quiet "${dcmqi%%==*}" 2>/dev/null || logged python -m pip install "$dcmqi"
