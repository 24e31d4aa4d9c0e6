# Finds libwebp: WebP::WebP. Debian's package has no CMake files. An installed libkontext also knows the folders of the one
# that it was built with: kontext_webp_folders.
find_path(WEBP_INCLUDE_DIR webp/decode.h HINTS ${kontext_webp_folders})
find_library(WEBP_LIBRARY webp HINTS ${kontext_webp_folders})

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(WebP REQUIRED_VARS WEBP_LIBRARY WEBP_INCLUDE_DIR)

if(WebP_FOUND AND NOT TARGET WebP::WebP)
  add_library(WebP::WebP UNKNOWN IMPORTED)
  set_target_properties(WebP::WebP PROPERTIES
    IMPORTED_LOCATION ${WEBP_LIBRARY} INTERFACE_INCLUDE_DIRECTORIES ${WEBP_INCLUDE_DIR})
endif()
