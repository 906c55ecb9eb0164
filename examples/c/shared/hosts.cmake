# What the C and the C++ program share: folder and library code, options of the build.
#   ONNXRUNTIME_LIBRARY   the shared library that the program opens unless --onnxruntime names another; pip puts it into
#                         site-packages/onnxruntime/capi/libonnxruntime.so.VERSION, and
#                         python -c "import onnxruntime; print(onnxruntime.__path__[0])" prints the folder before capi.
#                         A name without a slash is left to the system's loader.
set(ONNXRUNTIME_LIBRARY "libonnxruntime.so.1" CACHE STRING "onnxruntime's shared library, opened when the program starts")
option(HOSTS_WERROR "Treat warnings as errors" OFF)
set(HOSTS_SANITIZE "" CACHE STRING "Value for -fsanitize, for example address,undefined")

set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

function(hosts_configure target)
  target_compile_definitions(${target} PRIVATE _GNU_SOURCE DEFAULT_ONNXRUNTIME="${ONNXRUNTIME_LIBRARY}")
  target_compile_options(${target} PRIVATE -Wall -Wextra $<$<BOOL:${HOSTS_WERROR}>:-Werror>)
  if(HOSTS_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${HOSTS_SANITIZE} -fno-sanitize-recover=all -g)
    target_link_options(${target} PRIVATE -fsanitize=${HOSTS_SANITIZE})
  endif()
endfunction()

add_library(fairy2i_cjson OBJECT ${CMAKE_CURRENT_LIST_DIR}/third_party/cjson/cJSON.c)
add_library(fairy2i_shared STATIC ${CMAKE_CURRENT_LIST_DIR}/problem.c ${CMAKE_CURRENT_LIST_DIR}/folder.c
            ${CMAKE_CURRENT_LIST_DIR}/weights.c
            ${CMAKE_CURRENT_LIST_DIR}/library.c ${CMAKE_CURRENT_LIST_DIR}/onnxruntime.c $<TARGET_OBJECTS:fairy2i_cjson>)
target_include_directories(fairy2i_shared PUBLIC ${CMAKE_CURRENT_LIST_DIR}/..)
target_include_directories(fairy2i_shared SYSTEM PUBLIC ${CMAKE_CURRENT_LIST_DIR}/../../../custom_ops/third_party/onnxruntime)
target_link_libraries(fairy2i_shared PUBLIC ${CMAKE_DL_LIBS} m)
hosts_configure(fairy2i_shared)
