#pragma once

#include <string>

#include "kontext/kontext.hpp"

namespace kontext {

// A picture as the bytes of a PNG file.
std::string encode_png(const Picture& picture);

}  // namespace kontext
