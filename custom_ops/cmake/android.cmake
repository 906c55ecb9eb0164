# Cross build for Android: the toolchain of the NDK that ANDROID_NDK_HOME names (CMakePresets.json uses it, docs/phones.md).
include(${CMAKE_CURRENT_LIST_DIR}/android_ndk.cmake)
include("$ENV{ANDROID_NDK_HOME}/build/cmake/android.toolchain.cmake")
