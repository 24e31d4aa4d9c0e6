// Decoding of PNG, JPEG and WebP files, before the pixels are converted to upright RGB.
#pragma once

#include <string>
#include <vector>

#include "kontext/kontext.hpp"

namespace kontext {

constexpr std::size_t max_bytes = std::size_t{1} << 30;  // of a file
constexpr int max_scans = 64;  // of a JPEG file; progressive ones have about 10
constexpr std::uint64_t reduce_above = 24'000'000;  // pixels

// Pixels of 1 to 4 channels: grey, grey and alpha, RGB, RGBA.
struct Pixels {
    Size size;
    int channels = 0;
    int orientation = 1;  // EXIF's: 1 to 8
    std::vector<std::uint8_t> data;
};

// `name` is the file's name in messages. All throw Error; decode_webp always does in a build without libwebp.
Pixels decode_png(const std::string& file, const std::string& name);
// With `reduce`, decode_jpeg decodes pictures of more than reduce_above pixels at a half to an eighth of their sides.
Pixels decode_jpeg(const std::string& file, const std::string& name, bool reduce);
Pixels decode_webp(const std::string& file, const std::string& name);

// The orientation in EXIF data (a TIFF file: "II*\0…"), or 1.
int exif_orientation(const unsigned char* data, std::size_t size);

}  // namespace kontext
