# What both parts of a visit share, on the machine with the GPU; `.visit/` is there (prepare.sh). Sourced by them.
#     OUT      where results go: lines of JSON, and one log; by default benchmarks/results
#     PYTHON   has torch and Triton; what else is missing comes from the wheels in .visit
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3} OUT=${OUT:-benchmarks/results} SITE=${SITE:-/tmp/visit-site}
export PYTHONUNBUFFERED=1 XDG_CACHE_HOME=$PWD/.visit/cache
mkdir -p "$OUT" "$SITE"

missing() { # the wheels of packages that are not installed
    "$PYTHON" - <<'PYTHON_CODE'
import importlib.metadata
import pathlib

def plain(name):
    return name.lower().replace("_", "-")

there = {plain(part.metadata["Name"]) for part in importlib.metadata.distributions()}
print(*(wheel for wheel in pathlib.Path(".visit/wheels").glob("*.whl") if plain(wheel.name.split("-")[0]) not in there))
PYTHON_CODE
}
export PYTHONPATH=$SITE:$PWD
wheels=$(missing)
# shellcheck disable=SC2086
[ -z "$wheels" ] || "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$SITE" $wheels
ln -sfn "$PWD/cli" "$SITE/sresnet_cli"

part() { # part SECONDS COMMAND ...: with a limit of its own, and no longer than what is left of BUDGET; then SIGNAL
    local limit=$1 left=$((BUDGET - SECONDS)) start=$SECONDS code=0
    shift
    echo "== $*"
    [ "$left" -gt 5 ] || { echo "-- left out: the time is used up"; return 0; }
    timeout --signal "${SIGNAL:-TERM}" --kill-after 5 "$((limit < left ? limit : left))" "$@" || code=$?
    case $code in 124 | 137) echo "-- stopped at its limit" ;; esac
    echo "-- exit $code after $((SECONDS - start)) s, $SECONDS s in all"
}
