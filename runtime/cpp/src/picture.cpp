// Picture files: reading to upright RGB, and writing files that appear whole or not at all.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <utility>

#include "decoding.hpp"
#include "encoding.hpp"
#include "kontext/kontext.hpp"
#include "masks.hpp"
#include "resize.hpp"

namespace kontext {
namespace {

constexpr std::string_view png_magic = "\x89PNG\r\n\x1a\n", jpeg_magic = "\xFF\xD8\xFF", riff_magic = "RIFF";

bool begins(const std::string& file, std::string_view magic) { return file.compare(0, magic.size(), magic) == 0; }

bool is_webp(const std::string& file) { return begins(file, riff_magic) && file.compare(8, 4, "WEBP") == 0; }

// The bytes of a file that starts like a PNG, JPEG or WebP file.
std::string read_file(const std::filesystem::path& path) {
    std::error_code code;
    if (!std::filesystem::exists(path, code)) throw Error(path.string() + " does not exist");
    if (std::filesystem::is_directory(path, code)) throw Error(path.string() + " is a folder, not a picture");
    if (!std::filesystem::is_regular_file(path, code))
        throw Error(path.string() + " is not a regular file");
    if (std::filesystem::file_size(path, code) > max_bytes)
        throw Error(path.string() + " has more than " + std::to_string(max_bytes >> 30) +
                    " GiB: save it as JPEG or scale it down");
    std::ifstream file(path, std::ios::binary);
    if (!file) throw Error(path.string() + " cannot be read as a picture: " + std::strerror(errno));
    std::string data(12, '\0');
    file.read(data.data(), static_cast<std::streamsize>(data.size()));
    if (!file || (!begins(data, png_magic) && !begins(data, jpeg_magic) && !is_webp(data)))
        throw Error(path.string() + " is not a PNG, JPEG or WebP picture");
    return data.append(std::istreambuf_iterator<char>(file), {});
}

Pixels decode(const std::filesystem::path& path, bool reduce) {
    const std::string file = read_file(path), name = path.string();
    return begins(file, png_magic) ? decode_png(file, name)
           : is_webp(file)         ? decode_webp(file, name)
                                   : decode_jpeg(file, name, reduce);
}

// Grey to RGB and alpha over white, in Pillow's integer arithmetic.
Picture flatten(const Pixels& pixels) {
    Picture picture{pixels.size, {}};
    const auto channels = static_cast<std::size_t>(pixels.channels);
    const std::size_t count = pixels.data.size() / channels;
    picture.rgb.resize(3 * count);
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint8_t* in = &pixels.data[i * channels];
        const unsigned alpha = channels == 2 || channels == 4 ? in[channels - 1] : 255;
        for (std::size_t k = 0; k < 3; ++k) {
            const unsigned sum = (in[channels < 3 ? 0 : k] * alpha + 255 * (255 - alpha) + 128) * 128;
            picture.rgb[3 * i + k] = static_cast<std::uint8_t>((((sum >> 8) + sum) >> 8) >> 7);
        }
    }
    return picture;
}

// Rotated and mirrored as an EXIF orientation says.
Picture upright(Picture picture, int orientation) {
    if (orientation < 2 || orientation > 8) return picture;
    const auto [width, height] = picture.size;
    const bool transposed = orientation > 4;
    const bool mirror_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const bool mirror_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    Picture result{transposed ? Size{height, width} : picture.size, std::vector<std::uint8_t>(picture.rgb.size())};
    std::size_t at = 0;
    for (int row = 0; row < result.size.height; ++row)
        for (int column = 0; column < result.size.width; ++column) {
            int x = transposed ? row : column, y = transposed ? column : row;  // in the stored picture
            if (mirror_x) x = width - 1 - x;
            if (mirror_y) y = height - 1 - y;
            const std::size_t from =
                3 * (static_cast<std::size_t>(y) * static_cast<std::size_t>(width) + static_cast<std::size_t>(x));
            for (std::size_t k = 0; k < 3; ++k) result.rgb[at++] = picture.rgb[from + k];
        }
    return result;
}

// A temporary file in the folder of `path` that is renamed to `path`, or removed.
class PartialFile {
public:
    explicit PartialFile(const std::filesystem::path& path) : path(path) {
        name = (path.parent_path() / ("." + path.filename().string() + ".XXXXXX")).string();
        descriptor = ::mkstemp(name.data());
        if (descriptor < 0) fail();
    }
    ~PartialFile() {
        if (descriptor >= 0) ::close(descriptor);
        if (!done && !name.empty()) ::unlink(name.c_str());
    }
    PartialFile(const PartialFile&) = delete;
    PartialFile& operator=(const PartialFile&) = delete;

    void write(const std::string& data) {
        for (std::size_t at = 0; at < data.size();) {
            const ssize_t count = ::write(descriptor, data.data() + at, data.size() - at);
            if (count < 0 && errno != EINTR) fail();
            if (count > 0) at += static_cast<std::size_t>(count);
        }
        const mode_t mask = ::umask(0);
        ::umask(mask);
        if (::fchmod(descriptor, 0666 & ~mask) != 0 || ::fsync(descriptor) != 0) fail();
        if (std::rename(name.c_str(), path.c_str()) != 0) fail();
        done = true;
    }

private:
    [[noreturn]] void fail() {
        const int code = errno;
        const auto folder = std::filesystem::absolute(path).parent_path();
        if (code == ENOENT) throw Error(folder.string() + " does not exist: make the folder first");
        throw Error(path.string() + " cannot be written: " + std::strerror(code));
    }

    std::filesystem::path path;
    std::string name;
    int descriptor = -1;
    bool done = false;
};

// What writes files of a path's suffix.
std::string (*encoder_of(const std::filesystem::path& path))(const Picture&) {
    std::string suffix = path.extension().string();
    for (char& c : suffix) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    if (suffix == ".png") return encode_png;
    if (suffix == ".jpg" || suffix == ".jpeg") return encode_jpeg;
    throw Error(path.string() + ": cannot write pictures of type '" + (suffix.empty() ? "(none)" : suffix) +
                "': use .png or .jpg");
}

}  // namespace

int exif_orientation(const unsigned char* data, std::size_t size) {
    if (size > 6 && std::memcmp(data, "Exif\0\0", 6) == 0) data += 6, size -= 6;
    if (size < 8 || (data[0] != 'I' && data[0] != 'M')) return 1;
    const bool little = data[0] == 'I';
    const auto number = [&](std::size_t at, std::size_t bytes) {
        std::size_t value = 0;
        for (std::size_t k = 0; k < bytes; ++k) value = value << 8 | data[at + (little ? bytes - 1 - k : k)];
        return value;
    };
    const std::size_t directory = number(4, 4);
    if (directory > size - 2) return 1;
    const std::size_t count = number(directory, 2);
    for (std::size_t i = 0; i < count && directory + 2 + 12 * (i + 1) <= size; ++i) {
        const std::size_t entry = directory + 2 + 12 * i;
        if (number(entry, 2) == 0x0112) return static_cast<int>(number(entry + 8, 2));
    }
    return 1;
}

Picture read_picture(const std::filesystem::path& path, bool reduce) {
    const Pixels pixels = decode(path, reduce);
    return upright(flatten(pixels), pixels.orientation);
}

Picture read_mask(const std::filesystem::path& path, const std::function<void(const std::string&)>& warning) {
    Pixels pixels = decode(path, false);
    const auto channels = static_cast<std::size_t>(pixels.channels);
    std::vector<std::uint8_t> alpha;
    if (channels == 2 || channels == 4)
        for (std::size_t i = channels - 1; i < pixels.data.size(); i += channels)
            alpha.push_back(std::exchange(pixels.data[i], std::uint8_t{255}));
    Picture mask = to_grey(flatten(pixels));
    if (std::any_of(alpha.begin(), alpha.end(), [](std::uint8_t each) { return each < 255; })) {
        std::vector<std::uint8_t> grey(alpha.size());
        for (std::size_t i = 0; i < grey.size(); ++i) grey[i] = mask.rgb[3 * i];
        mask = grey_of_alpha(pixels.size, grey, alpha, warning);
    }
    return upright(std::move(mask), pixels.orientation);
}

void check_writable(const std::filesystem::path& path) {
    encoder_of(path);
    if (std::filesystem::is_directory(path)) throw Error(path.string() + " is a folder: name a file");
    const auto folder = std::filesystem::absolute(path).parent_path();
    if (!std::filesystem::exists(folder)) throw Error(folder.string() + " does not exist: make the folder first");
    if (::access(folder.c_str(), W_OK) != 0) throw Error(path.string() + " cannot be written: " + std::strerror(errno));
}

void write_picture(const Picture& picture, const std::filesystem::path& path) {
    const auto encode = encoder_of(path);
    if (std::filesystem::is_directory(path)) throw Error(path.string() + " is a folder: name a file");
    const auto pixels = static_cast<std::size_t>(std::max(picture.size.width, 0)) *
                        static_cast<std::size_t>(std::max(picture.size.height, 0));
    if (pixels == 0 || picture.rgb.size() != 3 * pixels)
        throw Error("the picture has more or fewer pixels than its size says");
    PartialFile(path).write(encode(picture));
}

}  // namespace kontext
