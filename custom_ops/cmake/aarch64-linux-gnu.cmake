# Cross build for 64-bit ARM Linux with Debian's compiler (package gcc-aarch64-linux-gnu), tests under qemu-user:
#   cmake -S custom_ops -B build/arm -DCMAKE_TOOLCHAIN_FILE=custom_ops/cmake/aarch64-linux-gnu.cmake -DF2I_BUILD_TESTS=ON
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++) # examples/cpp; package g++-aarch64-linux-gnu
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
find_program(F2I_QEMU qemu-aarch64)
if(F2I_QEMU)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${F2I_QEMU} -L /usr/aarch64-linux-gnu)
endif()
