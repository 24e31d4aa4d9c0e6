// PNG through libpng, which reports errors by longjmp: functions that it may leave hold nothing with a destructor.
#include <png.h>

#include <csetjmp>
#include <cstring>

#include "decoding.hpp"
#include "encoding.hpp"
#include "resize.hpp"

namespace kontext {
namespace {

struct Fault {
    char text[160] = "";
};

void on_error(png_structp png, png_const_charp message) {
    auto* error = static_cast<Fault*>(png_get_error_ptr(png));
    std::strncpy(error->text, message, sizeof error->text - 1);
    png_longjmp(png, 1);
}

void on_warning(png_structp, png_const_charp) {}

struct Source {
    const char* at;
    std::size_t left;
};

void on_read(png_structp png, png_bytep out, std::size_t size) {
    auto* source = static_cast<Source*>(png_get_io_ptr(png));
    if (size > source->left) png_error(png, "the file is truncated");
    std::memcpy(out, source->at, size);
    source->at += size;
    source->left -= size;
}

void on_write(png_structp png, png_bytep data, std::size_t size) {
    // No exception may pass through libpng.
    try {
        static_cast<std::string*>(png_get_io_ptr(png))->append(reinterpret_cast<char*>(data), size);
    } catch (const std::exception&) {
        png_error(png, "not enough memory");
    }
}

void on_flush(png_structp) {}

struct Reader {
    Fault error;
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &error, on_error, on_warning);
    png_infop info = png ? png_create_info_struct(png) : nullptr;
    ~Reader() { png_destroy_read_struct(&png, &info, nullptr); }
};

struct Writer {
    Fault error;
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &error, on_error, on_warning);
    png_infop info = png ? png_create_info_struct(png) : nullptr;
    ~Writer() { png_destroy_write_struct(&png, &info); }
};

bool guarded_header(Reader& reader) {
    if (setjmp(png_jmpbuf(reader.png))) return false;
    png_read_info(reader.png, reader.info);
    return true;
}

// Requests 8 or 16 bits of grey or RGB, with alpha if there is any transparency.
bool guarded_transforms(Reader& reader) {
    png_structp png = reader.png;
    if (setjmp(png_jmpbuf(png))) return false;
    const int type = png_get_color_type(png, reader.info);
    const int depth = png_get_bit_depth(png, reader.info);
    if (type == PNG_COLOR_TYPE_PALETTE) png_set_palette_to_rgb(png);
    if (type == PNG_COLOR_TYPE_GRAY && depth < 8) png_set_expand_gray_1_2_4_to_8(png);
    // Pillow, which the Python runtime uses, drops the transparent value of 16-bit pictures with their low bytes.
    if (png_get_valid(png, reader.info, PNG_INFO_tRNS) && depth <= 8) png_set_tRNS_to_alpha(png);
    if (depth == 16 && type != PNG_COLOR_TYPE_GRAY) png_set_strip_16(png);
    png_set_interlace_handling(png);
    png_read_update_info(png, reader.info);
    return true;
}

bool guarded_rows(Reader& reader, png_bytepp rows) {
    if (setjmp(png_jmpbuf(reader.png))) return false;
    png_read_image(reader.png, rows);
    return true;
}

// The chunks after the pixels may be damaged: only EXIF data is read from them.
void guarded_end(Reader& reader) {
    if (setjmp(png_jmpbuf(reader.png))) return;
    png_read_end(reader.png, reader.info);
}

int orientation(Reader& reader) {
    png_uint_32 size = 0;
    png_bytep data = nullptr;
    if (png_get_eXIf_1(reader.png, reader.info, &size, &data) == 0) return 1;
    return exif_orientation(data, size);
}

bool guarded_write(Writer& writer, const Picture& picture, std::string& out) {
    if (setjmp(png_jmpbuf(writer.png))) return false;
    png_set_write_fn(writer.png, &out, on_write, on_flush);
    const auto width = static_cast<png_uint_32>(picture.size.width),
               height = static_cast<png_uint_32>(picture.size.height);
    png_set_IHDR(writer.png, writer.info, width, height, 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_write_info(writer.png, writer.info);
    for (png_uint_32 row = 0; row < height; ++row)
        png_write_row(writer.png, picture.rgb.data() + std::size_t{3} * width * row);
    png_write_end(writer.png, writer.info);
    return true;
}

}  // namespace

Pixels decode_png(const std::string& file, const std::string& name) {
    Reader reader;
    if (reader.info == nullptr) throw Error("not enough memory to read " + name);
    const auto check = [&](bool good) {
        if (!good) throw Error(name + " cannot be read as a picture: " + reader.error.text);
    };
    Source source{file.data(), file.size()};
    png_set_read_fn(reader.png, &source, on_read);
    png_set_user_limits(reader.png, 0x7FFFFFFF, 0x7FFFFFFF);  // check_pixels limits them instead
    check(guarded_header(reader));
    const std::uint64_t width = png_get_image_width(reader.png, reader.info);
    const std::uint64_t height = png_get_image_height(reader.png, reader.info);
    check_pixels(width, height, name);
    const bool deep_grey = png_get_color_type(reader.png, reader.info) == PNG_COLOR_TYPE_GRAY &&
                           png_get_bit_depth(reader.png, reader.info) == 16;
    check(guarded_transforms(reader));
    Pixels pixels;
    pixels.size = {static_cast<int>(width), static_cast<int>(height)};
    pixels.channels = png_get_channels(reader.png, reader.info);
    const std::size_t row_bytes = png_get_rowbytes(reader.png, reader.info);
    pixels.data.resize(row_bytes * height);
    std::vector<png_bytep> rows(height);
    for (std::size_t row = 0; row < height; ++row) rows[row] = pixels.data.data() + row * row_bytes;
    check(guarded_rows(reader, rows.data()));
    guarded_end(reader);
    pixels.orientation = orientation(reader);
    if (deep_grey) {  // to 8 bits: round(value / 257); halves do not occur
        for (std::size_t i = 0; i < width * height; ++i)
            pixels.data[i] = static_cast<std::uint8_t>((pixels.data[2 * i] * 256 + pixels.data[2 * i + 1] + 128) / 257);
        pixels.data.resize(width * height);
    }
    return pixels;
}

std::string encode_png(const Picture& picture) {
    Writer writer;
    std::string out;
    if (writer.info == nullptr || !guarded_write(writer, picture, out))
        throw Error(std::string("the picture cannot be written as PNG: ") + writer.error.text);
    return out;
}

}  // namespace kontext
