# Sourced by test.sh, demo.sh and monai_label.sh. Afterwards $root is the checkout and `python` has all that is needed.
#
#   PYTHON=/path/to/python   the interpreter to make the environment with, 3.11 to 3.13
#   USE_CURRENT_ENV=1        makes nothing and uses the environment that is active (not monai_label.sh)
#
# The environment is .venv inside the checkout. It is made once and made anew when requirements.txt, the checkout's
# place or the version of PYTHON has changed, or when an earlier attempt was cut short. monai_label.sh sets
# $environment_name, $requirements_name, $versions and install_packages for an environment of another kind.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
environment="$root/${environment_name:-.venv}"
requirements="$root/${requirements_name:-requirements.txt}"
stamp="$environment/made-by-setup-env" # exists from the first moment, says what was installed only when all is there
log="$root/setup${environment_name:-}.log" # two environments may be made at the same time
versions="${versions:-3.11, 3.12 or 3.13}"
needed_mb=4000 # .venv measures 3.0 GB with torch's CPU build, and pip unpacks beside it

fail() {
    printf '\nError: %s\n' "$*" >&2
    exit 1
}

python_version() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }

is_supported() { case "$1" in 3.??.*) [[ "$versions" == *"${1%.*}"* ]] ;; *) return 1 ;; esac; }

# Sets $interpreter: PYTHON if given, else the first in range.
choose_interpreter() {
    local version found=""
    if [ -n "${PYTHON:-}" ]; then
        version="$(python_version "$PYTHON")" || fail "PYTHON=$PYTHON does not run. Set it to Python $versions."
        is_supported "$version" ||
            fail "PYTHON=$PYTHON is Python $version, but $versions is needed. Set PYTHON= to one of those."
        interpreter="$PYTHON"
        return
    fi
    for interpreter in python3 python3.12 python3.13 python3.11; do
        version="$(python_version "$interpreter")" || continue
        is_supported "$version" && return
        found="$found $version"
    done
    fail "Python $versions is needed, found:${found:- none}. Install one, or name it: PYTHON=/path/to/python3.12"
}

contents() { printf '%s\n' "$root" && cat "$requirements"; }

is_made() {
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(contents)" ] || return 1
    [ -z "${PYTHON:-}" ] || [ "$(python_version "$PYTHON")" = "$(python_version "$environment/bin/python")" ]
}

# Runs a step of the set-up. When it fails: its output, and what is likely the cause.
logged() {
    "$@" >>"$log" 2>&1 && return
    tail -n 25 "$log" >&2
    if grep -qiE 'Errno 28|no space left' "$log"; then
        fail "the disk is full. About $((needed_mb / 1000)) GB are needed in $root (9 GB more with torch's CUDA build)."
    elif grep -qiE 'ensurepip is not available|No module named .?(venv|ensurepip|pip)' "$log"; then
        fail "$interpreter cannot make environments. Install its venv module (Debian, Ubuntu: apt install python3-venv)," \
            "or name another interpreter: PYTHON=/path/to/python3.12"
    elif grep -qiE 'NewConnectionError|NameResolutionError|ProxyError|connection broken|timed out|unreachable' "$log"; then
        fail "the package index cannot be reached: no network? Try again when it is there, behind a proxy set" \
            "HTTPS_PROXY. test.sh and demo.sh also take an environment that has everything: USE_CURRENT_ENV=1." \
            "Full log: $log"
    fi
    fail "the set-up failed. Full log: $log"
}

declare -F install_packages >/dev/null || install_packages() {
    logged "$environment/bin/python" -m pip install --requirement "$requirements"
    logged "$environment/bin/python" -m pip install --no-deps --no-build-isolation --editable "$root"
    logged "$environment/bin/python" "$root/scripts/check_env.py"
}

make_environment() {
    local free_mb
    choose_interpreter
    if [ -e "$environment" ] && [ ! -f "$stamp" ]; then
        fail "$environment exists, but was not made by this script. Remove it; or, for test.sh and demo.sh, activate" \
            "an environment and set USE_CURRENT_ENV=1."
    fi
    rm -rf "$environment"
    free_mb="$(df -Pm "$root" | awk 'NR == 2 { print $4 }')"
    [ "$free_mb" -ge "$needed_mb" ] ||
        fail "$root has $free_mb MB of free disk space, but $needed_mb MB are needed to install the packages."
    printf 'Installing the packages into %s, once; this takes a few minutes ...\n' "$environment"
    { mkdir "$environment" && : >"$stamp" && : >"$log"; } || fail "$root cannot be written to."
    logged "$interpreter" -m venv "$environment"
    install_packages
    contents >"$stamp"
}

if [ "${USE_CURRENT_ENV:-0}" = 1 ]; then
    is_supported "$(python_version python)" ||
        fail "USE_CURRENT_ENV=1, but \`python\` is $(python_version python || echo missing): 3.11 to 3.13 is needed." \
            "Activate an environment, or leave USE_CURRENT_ENV out to have one made."
    python "$root/scripts/check_env.py" || exit 1
else
    is_made || make_environment
    export VIRTUAL_ENV="$environment" PATH="$environment/bin:$PATH"
fi

# Threads that wait give their core away: where other work runs beside, a step takes a fraction of the time.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
