# Whether there is an NDK: asked before project(), too, which would go on after an error in a toolchain with other complaints.
if(NOT EXISTS "$ENV{ANDROID_NDK_HOME}/build/cmake/android.toolchain.cmake")
  message(FATAL_ERROR
    "The environment variable ANDROID_NDK_HOME must be the folder of an Android NDK, such as "
    "~/Android/Sdk/ndk/28.2.13676358, with build/cmake/android.toolchain.cmake in it; it is \"$ENV{ANDROID_NDK_HOME}\". "
    "Android Studio installs one: Settings, SDK Tools, NDK (Side by side).")
endif()
