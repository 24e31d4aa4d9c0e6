// Encoding of PNG and JPEG files.
#pragma once

#include <string>

#include "kontext/kontext.hpp"

namespace kontext {

// The bytes of a picture as a PNG file.
std::string encode_png(const Picture& picture);

// The bytes of a picture as a JPEG file, of quality 75 and with halved chroma, as Pillow writes it.
std::string encode_jpeg(const Picture& picture);

}  // namespace kontext
