# Cross builds by zig (Python package ziglang), which brings the headers and libraries of other systems; with Ninja, because
# zig is no archiver of the kind that CMake's makefiles want:
#   cmake -G Ninja -S custom_ops -B build/mac -DCMAKE_TOOLCHAIN_FILE=$PWD/custom_ops/cmake/zig.cmake \
#     -DF2I_ZIG_TARGET=aarch64-macos.11.0 -DF2I_ZIG=$PWD/.venv/bin/python-zig
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES F2I_ZIG F2I_ZIG_TARGET)
if(NOT F2I_ZIG)
  set(F2I_ZIG zig)
endif()
string(REGEX MATCH "^[^-]+" CMAKE_SYSTEM_PROCESSOR "${F2I_ZIG_TARGET}")
if(F2I_ZIG_TARGET MATCHES "-macos")
  set(CMAKE_SYSTEM_NAME Darwin)
  set(CMAKE_INSTALL_NAME_TOOL true) # CMake insists on one; there is nothing to rename
elseif(F2I_ZIG_TARGET MATCHES "-windows")
  set(CMAKE_SYSTEM_NAME Windows)
else()
  set(CMAKE_SYSTEM_NAME Linux)
endif()
set(CMAKE_C_COMPILER ${F2I_ZIG} cc -target ${F2I_ZIG_TARGET})
