// JPEG through libjpeg, which reports errors by longjmp: functions that it may leave hold nothing with a destructor.
#include <cstddef>
#include <cstdio>

#include <jpeglib.h>
#include <jerror.h>

#include <csetjmp>
#include <cstdlib>
#include <cstring>

#include "decoding.hpp"
#include "encoding.hpp"
#include "resize.hpp"

namespace kontext {
namespace {

struct Faults {
    jpeg_error_mgr errors;  // must be first: libjpeg passes its address back
    std::jmp_buf jump;
    char text[JMSG_LENGTH_MAX] = "";
};

struct Reader : Faults {
    jpeg_decompress_struct decoder{};
    bool made = false;
    ~Reader() {
        if (made) jpeg_destroy_decompress(&decoder);
    }
};

struct Writer : Faults {
    jpeg_compress_struct encoder{};
    unsigned char* bytes = nullptr;
    unsigned long size = 0;
    bool made = false;
    ~Writer() {
        if (made) jpeg_destroy_compress(&encoder);
        std::free(bytes);
    }
};

[[noreturn]] void on_error(j_common_ptr common) {
    auto* faults = reinterpret_cast<Faults*>(common->err);
    (*common->err->format_message)(common, faults->text);
    std::longjmp(faults->jump, 1);
}

// The only warning that means lost pixels, which libjpeg would fill with grey.
void on_message(j_common_ptr common, int level) {
    if (level < 0 && common->err->msg_code == JWRN_JPEG_EOF) on_error(common);
}

bool guarded_header(Reader& reader, const std::string& file) {
    reader.decoder.err = jpeg_std_error(&reader.errors);
    reader.errors.error_exit = on_error;
    reader.errors.emit_message = on_message;
    if (setjmp(reader.jump)) return false;
    jpeg_create_decompress(&reader.decoder);
    reader.made = true;
    jpeg_mem_src(&reader.decoder, reinterpret_cast<const unsigned char*>(file.data()), file.size());
    jpeg_save_markers(&reader.decoder, JPEG_APP0 + 1, 0xFFFF);
    jpeg_read_header(&reader.decoder, TRUE);
    return true;
}

bool guarded_start(Reader& reader) {
    if (setjmp(reader.jump)) return false;
    jpeg_decompress_struct& decoder = reader.decoder;
    const J_COLOR_SPACE space = decoder.jpeg_color_space;
    decoder.out_color_space = space == JCS_GRAYSCALE                   ? JCS_GRAYSCALE
                              : space == JCS_CMYK || space == JCS_YCCK ? JCS_CMYK
                                                                       : JCS_RGB;
    jpeg_start_decompress(&decoder);
    return true;
}

bool guarded_rows(Reader& reader, std::uint8_t* data) {
    if (setjmp(reader.jump)) return false;
    jpeg_decompress_struct& decoder = reader.decoder;
    const std::size_t row_bytes =
        std::size_t{decoder.output_width} * static_cast<std::size_t>(decoder.output_components);
    while (decoder.output_scanline < decoder.output_height) {
        JSAMPROW row = data + row_bytes * decoder.output_scanline;
        jpeg_read_scanlines(&decoder, &row, 1);
    }
    jpeg_finish_decompress(&decoder);
    return true;
}

int orientation(const Reader& reader) {
    for (auto* marker = reader.decoder.marker_list; marker != nullptr; marker = marker->next)
        if (marker->data_length > 6 && std::memcmp(marker->data, "Exif\0\0", 6) == 0)
            return exif_orientation(marker->data + 6, marker->data_length - 6);
    return 1;
}

bool guarded_write(Writer& writer, const Picture& picture) {
    jpeg_compress_struct& encoder = writer.encoder;
    encoder.err = jpeg_std_error(&writer.errors);
    writer.errors.error_exit = on_error;
    if (setjmp(writer.jump)) return false;
    jpeg_create_compress(&encoder);
    writer.made = true;
    jpeg_mem_dest(&encoder, &writer.bytes, &writer.size);
    encoder.image_width = static_cast<JDIMENSION>(picture.size.width);
    encoder.image_height = static_cast<JDIMENSION>(picture.size.height);
    encoder.input_components = 3;
    encoder.in_color_space = JCS_RGB;
    jpeg_set_defaults(&encoder);
    jpeg_start_compress(&encoder, TRUE);
    const std::size_t row_bytes = std::size_t{3} * encoder.image_width;
    while (encoder.next_scanline < encoder.image_height) {
        auto* row = const_cast<JSAMPROW>(picture.rgb.data() + row_bytes * encoder.next_scanline);  // only read
        jpeg_write_scanlines(&encoder, &row, 1);
    }
    jpeg_finish_compress(&encoder);
    return true;
}

// CMYK to RGB without colour profiles, rounded as Pillow does; Adobe's files store inverted inks.
void to_rgb(Pixels& pixels, bool inverted) {
    const std::size_t count = pixels.data.size() / 4;
    for (std::size_t i = 0; i < count; ++i) {
        const auto ink = [&](std::size_t k) {
            return inverted ? 255 - pixels.data[4 * i + k] : int{pixels.data[4 * i + k]};
        };
        const int light = 255 - ink(3);
        std::uint8_t rgb[3];
        for (std::size_t k = 0; k < 3; ++k) {
            const int product = ink(k) * light + 128;
            rgb[k] = static_cast<std::uint8_t>(std::max(light - (((product >> 8) + product) >> 8), 0));
        }
        std::memcpy(&pixels.data[3 * i], rgb, 3);
    }
    pixels.data.resize(3 * count);
    pixels.channels = 3;
}

// The scans of a JPEG file's first picture, counted by its markers: each takes as long to decode as a whole picture.
int scans_of(const std::string& file) {
    const auto byte = [&](std::size_t at) { return static_cast<unsigned char>(file[at]); };
    int scans = 0;
    for (std::size_t at = 2; at + 1 < file.size();) {
        const unsigned char marker = byte(at + 1);
        if (byte(at) != 0xFF || marker == 0xFF) {
            ++at;
            continue;
        }
        at += 2;
        if (marker == 0xD9) break;                                                         // the end
        if (marker == 0 || marker == 1 || (marker >= 0xD0 && marker <= 0xD8)) continue;    // without a length
        if (at + 2 > file.size()) break;
        scans += marker == 0xDA;
        at += static_cast<std::size_t>(byte(at) << 8 | byte(at + 1));
    }
    return scans;
}

// What the sides of a picture are divided by so that it has no more than reduce_above pixels: 1, 2, 4 or 8.
unsigned divisor(std::uint64_t width, std::uint64_t height) {
    unsigned result = 1;
    while (result < 8 && width * height > result * result * reduce_above) result *= 2;
    return result;
}

}  // namespace

Pixels decode_jpeg(const std::string& file, const std::string& name, bool reduce) {
    if (const int scans = scans_of(file); scans > max_scans)
        throw Error(name + " is a JPEG file of " + std::to_string(scans) + " scans; at most " +
                    std::to_string(max_scans) + " are read: save it again");
    Reader reader;
    const auto check = [&](bool good) {
        if (!good) throw Error(name + " cannot be read as a picture: " + reader.text);
    };
    check(guarded_header(reader, file));
    const std::uint64_t width = reader.decoder.image_width, height = reader.decoder.image_height;
    check_pixels(width, height, name);
    if (reduce) reader.decoder.scale_denom = divisor(width, height);  // scale_num is 1
    check(guarded_start(reader));
    Pixels pixels;
    pixels.size = {static_cast<int>(reader.decoder.output_width), static_cast<int>(reader.decoder.output_height)};
    pixels.channels = reader.decoder.output_components;
    pixels.orientation = orientation(reader);
    pixels.data.resize(std::size_t{reader.decoder.output_width} * reader.decoder.output_height *
                       static_cast<std::size_t>(pixels.channels));
    check(guarded_rows(reader, pixels.data.data()));
    if (pixels.channels == 4) to_rgb(pixels, reader.decoder.saw_Adobe_marker != 0);
    return pixels;
}

std::string encode_jpeg(const Picture& picture) {
    Writer writer;
    if (!guarded_write(writer, picture))
        throw Error(std::string("the picture cannot be written as JPEG: ") + writer.text);
    return {reinterpret_cast<const char*>(writer.bytes), writer.size};
}

}  // namespace kontext
