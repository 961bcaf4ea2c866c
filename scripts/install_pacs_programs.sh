#!/usr/bin/env bash
# The programs that the tests with marker `pacs` need: Orthanc, a PACS, and independent readers of what is stored there.
# With `viewer`, those of marker `viewer` too: the viewer OHIF, which scripts/view_ohif.py serves, and a browser that a
# test can drive.
#
#   bash scripts/install_pacs_programs.sh           # 0.2 GB
#   bash scripts/install_pacs_programs.sh viewer    # 0.7 GB more
#   bash scripts/test.sh -m "pacs or viewer"
#
# Debian's packages, as root or by sudo; dcmqi of PyPI into the project's environment; OHIF and puppeteer-core of npm
# into build/viewer. What is there is left alone. PYTHON= and USE_CURRENT_ENV=1: see setup_env.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup_env.sh"

dcmqi="dcmqi==1.5.7"
ohif="3.12.10"
puppeteer="24.31.0"
packages=(orthanc orthanc-dicomweb dcmtk dicom3tools plastimatch)
case "$*" in
    "") ;;
    viewer)
        packages+=(chromium)
        command -v node >/dev/null || packages+=(nodejs) # of other sources it is as good
        command -v npm >/dev/null || packages+=(npm)
        ;;
    *) fail "$*: expected nothing, or viewer." ;;
esac

install_debian_packages() {
    local package missing=() as_root=()
    for package in "${packages[@]}"; do
        [[ "$(dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null)" == *" installed" ]] ||
            missing+=("$package")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    command -v apt-get >/dev/null || fail "there is no apt-get: install what Debian calls ${missing[*]}."
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    printf 'Installing %s ...\n' "${missing[*]}"
    : >"$log"
    logged "${as_root[@]}" apt-get update
    # RUNLEVEL: Orthanc does not become a service of this machine, the tests start their own
    logged "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install --yes --no-install-recommends "${missing[@]}"
}

# Whether a folder holds a package of npm in a version.
has_npm() { [ "$(node --print 'require(process.argv[1]).version' "$1/package.json" 2>/dev/null)" = "$2" ]; }

install_viewer() {
    local folder="$root/build/viewer"
    mkdir -p "$folder"
    if ! has_npm "$folder/ohif" "$ohif"; then
        printf 'Installing OHIF %s into %s ...\n' "$ohif" "$folder"
        # The package alone: it carries the built viewer, what it names as its needs are those of the build.
        logged npm pack --pack-destination "$folder" "@ohif/app@$ohif"
        rm -rf "$folder/ohif"
        mkdir "$folder/ohif"
        logged tar --extract --strip-components 1 --directory "$folder/ohif" --file "$folder/ohif-app-$ohif.tgz"
        rm "$folder/ohif-app-$ohif.tgz"
    fi
    has_npm "$folder/node_modules/puppeteer-core" "$puppeteer" ||
        logged npm install --prefix "$folder" --no-save --ignore-scripts "puppeteer-core@$puppeteer"
}

install_debian_packages
python -m pip show --quiet "${dcmqi%%==*}" 2>/dev/null || logged python -m pip install "$dcmqi"
[ "$*" != viewer ] || install_viewer
