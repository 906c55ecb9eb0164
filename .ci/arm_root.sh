# What the checks of 64-bit ARM share, to be sourced in the repository's root: a cross compiler, qemu, Debian's programs and
# libraries for ARM below $arm/root, wheels below $arm/site, the operator library in $arm/build. Needs root only for apt-get.
arm=$PWD/.work/arm
source .ci/tools.sh

arm_tools() { # and what else was needed
  need aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross
  need qemu-aarch64 qemu-user
  need unzip unzip
  install_tools
}

cross_cmake() { # source folder, build folder, options
  cmake -S "$1" -B "$2" -DCMAKE_TOOLCHAIN_FILE="$PWD/custom_ops/cmake/aarch64-linux-gnu.cmake" "${@:3}" > /dev/null
}

arm_library() { # a target to build, or nothing for all
  cross_cmake custom_ops "$arm/build" -DF2I_BUILD_TESTS=ON -DF2I_WERROR=ON
  cmake --build "$arm/build" -j2 ${1:+--target "$1"} > "$arm/build.log" || { cat "$arm/build.log"; exit 1; }
}

# a package index of our own, so that this machine's list of architectures stays as it is
apt_arm() {
  apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root \
    -o Dir::State::status=/dev/null -o Dir::State::lists="$arm/apt/lists" -o Dir::Cache="$arm/apt/cache" "$@"
}

arm_root() {
  mkdir -p "$arm"/apt/lists/partial "$arm"/apt/cache/archives/partial "$arm"/debs "$arm"/root/proc
  if [ ! -x "$arm/root/usr/bin/python3.11" ]; then
    apt_arm update
    (cd "$arm/debs" && apt_arm download libc6 libgcc-s1 libstdc++6 zlib1g libexpat1 libssl3 libffi8 libbz2-1.0 liblzma5 \
      libuuid1 libsqlite3-0 libpython3.11-minimal libpython3.11-stdlib python3.11-minimal)
    for package in "$arm"/debs/*.deb; do dpkg-deb -x "$package" "$arm/root"; done
  fi
}

# onnxruntime reads this file, and crashes on the x86 one that qemu 7.2 would show. It has to be that of the CPU that is emulated:
# onnxruntime believes it, and a Cortex-A72 does not know the instructions of a Cortex-A76
arm_cpuinfo() { # CPU
  local part features="fp asimd evtstrm crc32 cpuid" cpu
  case $1 in
    cortex-a53) part=0xd03 ;;
    cortex-a72) part=0xd08 ;;
    *) part=0xd0b features="fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp" ;;
  esac
  for cpu in 0 1; do
    printf 'processor\t: %d\nBogoMIPS\t: 108.00\nFeatures\t: %s\n' "$cpu" "$features"
    printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: %s\nCPU revision\t: 1\n\n' "$part"
  done > "$arm/root/proc/cpuinfo"
}

arm_wheels() { # NAME==VERSION: fetched if that NAME in that VERSION is not there, and what onnxruntime needs by .ci/locks
  local name=${1%%==*} version=${1##*==} wanted
  [ -d "$arm/site/${name//-/_}-$version.dist-info" ] && cmp -s .ci/locks/arm.txt "$arm/site/lock.txt" && return
  rm -rf "$arm/site/${name//-/_}" "$arm/site/${name//-/_}"-*.dist-info
  mkdir -p "$arm/site" "$arm/wheels"
  for wanted in "$1" "--require-hashes -r .ci/locks/arm.txt"; do
    # shellcheck disable=SC2086  # words of the command
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$arm/wheels" \
      --python-version 311 --implementation cp --abi cp311 --platform manylinux_2_28_aarch64 \
      --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 $wanted
  done
  for wheel in "$arm"/wheels/*.whl; do unzip -qo "$wheel" -d "$arm/site"; done
  rm "$arm"/wheels/*.whl
  cp .ci/locks/arm.txt "$arm/site/lock.txt"
}

on_arm() { # CPU, options of qemu, program, arguments: in the root of ARM
  arm_cpuinfo "$1"
  qemu-aarch64 -cpu "$1" -L "$arm/root" "${@:2}"
}
