#pragma once

#include <string>

#include "kontext/kontext.hpp"

namespace kontext {

// The bytes of a picture as a PNG file.
std::string encode_png(const Picture& picture);

}  // namespace kontext
