# What the scripts beside it share, to be sourced: steps with the seconds so far, and Debian's packages for commands that a
# machine lacks, and Python's of .ci/locks.
step() { printf '\n== %s (%ds)\n' "$1" "$SECONDS"; }

PATH=$PATH:/usr/sbin # nginx
packages=()
need() { command -v "$1" > /dev/null || packages+=("${@:2}"); } # command, packages that have it
locked() { # name of .ci/locks: its packages, by version and hash, for the Makefile's Python, in .work/locked/NAME
  local folder=$PWD/.work/locked/$1
  cmp -s ".ci/locks/$1.txt" "$folder/lock.txt" && return
  [ -x .venv/bin/python ] || make .venv/bin/python
  rm -rf "$folder"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder" --require-hashes \
    -r ".ci/locks/$1.txt"
  cp ".ci/locks/$1.txt" "$folder/lock.txt"
}
install_tools() { # what is missing of what was needed, and what every environment needs
  need gcc gcc libc6-dev
  need make make
  need cmake cmake
  python3 -c 'import ensurepip' 2> /dev/null || packages+=(python3-venv)
  if [ ${#packages[@]} -gt 0 ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" > /dev/null
  fi
}
