// Decoding of PNG, JPEG and WebP files, before the pixels are converted to upright RGB.
#pragma once

#include <string>
#include <vector>

#include "kontext/kontext.hpp"

namespace kontext {

// Pixels of 1 to 4 channels: grey, grey and alpha, RGB, RGBA.
struct Pixels {
    Size size;
    int channels = 0;
    int orientation = 1;  // EXIF's: 1 to 8
    std::vector<std::uint8_t> data;
};

// `name` is the file's name in messages. All throw Error; decode_webp always does in a build without libwebp.
Pixels decode_png(const std::string& file, const std::string& name);
Pixels decode_jpeg(const std::string& file, const std::string& name);
Pixels decode_webp(const std::string& file, const std::string& name);

// The orientation in EXIF data (a TIFF file: "II*\0…"), or 1.
int exif_orientation(const unsigned char* data, std::size_t size);

}  // namespace kontext
