// WebP through libwebp, in builds that found it.
#include "decoding.hpp"
#include "resize.hpp"

#ifdef KONTEXT_WITH_WEBP
#include <webp/decode.h>

#include <cstring>
#endif

namespace kontext {

#ifdef KONTEXT_WITH_WEBP
namespace {

// The EXIF chunk's orientation, or 1. A WebP file is a RIFF file: after 12 bytes, chunks of a name, a size in 4 bytes,
// and data that is padded to an even size.
int orientation(const std::string& file) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(file.data());
    for (std::size_t at = 12; at + 8 <= file.size();) {
        std::size_t size = 0;
        for (std::size_t k = 4; k-- > 0;) size = size << 8 | bytes[at + 4 + k];
        if (size > file.size() - at - 8) break;
        if (std::memcmp(bytes + at, "EXIF", 4) == 0) return exif_orientation(bytes + at + 8, size);
        at += 8 + size + size % 2;
    }
    return 1;
}

}  // namespace

Pixels decode_webp(const std::string& file, const std::string& name) {
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(file.data());
    WebPBitstreamFeatures found{};
    if (WebPGetFeatures(bytes, file.size(), &found) != VP8_STATUS_OK)
        throw Error(name + " cannot be read as a picture: its header is damaged");
    if (found.has_animation != 0) throw Error(name + " is an animation: save one of its pictures");
    check_pixels(std::uint64_t(found.width), std::uint64_t(found.height), name);
    Pixels pixels;
    pixels.size = {found.width, found.height};
    pixels.channels = found.has_alpha != 0 ? 4 : 3;
    pixels.orientation = orientation(file);
    const std::size_t stride = static_cast<std::size_t>(found.width) * static_cast<std::size_t>(pixels.channels);
    pixels.data.resize(stride * static_cast<std::size_t>(found.height));
    const auto decode = found.has_alpha != 0 ? WebPDecodeRGBAInto : WebPDecodeRGBInto;
    if (decode(bytes, file.size(), pixels.data.data(), pixels.data.size(), static_cast<int>(stride)) == nullptr)
        throw Error(name + " cannot be read as a picture: it is truncated or damaged");
    return pixels;
}

#else

Pixels decode_webp(const std::string&, const std::string& name) {
    throw Error(name +
                " is a WebP picture, which this build does not read (it was built without libwebp): convert it "
                "to PNG");
}

#endif

}  // namespace kontext
