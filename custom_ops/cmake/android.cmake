# Cross build for Android: the toolchain of the NDK that ANDROID_NDK_HOME names (CMakePresets.json uses it, docs/phones.md).
if(NOT EXISTS "$ENV{ANDROID_NDK_HOME}/build/cmake/android.toolchain.cmake")
  message(FATAL_ERROR
    "The environment variable ANDROID_NDK_HOME must be the folder of an Android NDK, such as "
    "~/Android/Sdk/ndk/28.2.13676358, with build/cmake/android.toolchain.cmake in it; it is \"$ENV{ANDROID_NDK_HOME}\". "
    "Android Studio installs one: Settings, SDK Tools, NDK (Side by side).")
endif()
include("$ENV{ANDROID_NDK_HOME}/build/cmake/android.toolchain.cmake")
