# What the scripts beside it share, to be sourced: steps with the seconds so far, and Debian's packages for commands that a
# machine lacks.
step() { printf '\n== %s (%ds)\n' "$1" "$SECONDS"; }

PATH=$PATH:/usr/sbin # nginx
packages=()
need() { command -v "$1" > /dev/null || packages+=("${@:2}"); } # command, packages that have it
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
