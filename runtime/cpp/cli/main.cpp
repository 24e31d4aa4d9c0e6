// kontext-edit-cpp BUNDLE -i in.png --prompt "…" -o out.png: kontext-edit in C++, with the same flags.
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <mutex>
#include <new>
#include <thread>

#include "kontext/kontext.hpp"

namespace {

namespace fs = std::filesystem;
using kontext::Error;

constexpr const char* usage = R"(usage: kontext-edit-cpp BUNDLE --prompt TEXT -o FILE.png [-i FILE]...

Edits a picture with a bundle that kontext-export wrote.

  -i, --image FILE     a reference picture, PNG or JPEG; repeat it for several, leave it out to draw from the prompt alone
  -p, --prompt TEXT    the instruction
  -o, --output FILE    the PNG file to write, replaced if it exists
  --steps N            sampler steps (default: the bundle's)
  --guidance X         guidance scale (default: the bundle's)
  --seed N             seed of the noise (default: 0)
  --size WxH           output size in pixels (default: the reference's aspect, at a size the model prefers)
  --threads N          CPU cores to use (default: all that this process may use)
  --verify             compare the bundle's files with their SHA-256 first
  --quiet              no progress, no messages
  --version            show the version and exit
  -h, --help           show this help and exit
)";

struct Arguments {
    fs::path bundle, output;
    std::vector<fs::path> images;
    std::string prompt;
    kontext::LoadOptions load;
    kontext::EditOptions edit;
    bool quiet = false, help = false, version = false;
};

template <typename Number>
Number number(const std::string& flag, const std::string& text, const char* kind) {
    Number value{};
    const char* end = text.data() + text.size();
    const auto result = std::from_chars(text.data(), end, value);
    if (result.ec != std::errc() || result.ptr != end)
        throw Error(flag + ": invalid " + kind + " value: '" + text.substr(0, 40) + "'");
    return value;
}

std::uint64_t seed(const std::string& text) {
    std::uint64_t value = 0;
    const char* end = text.data() + text.size();
    const auto result = std::from_chars(text.data(), end, value);
    if (result.ec != std::errc() || result.ptr != end)
        throw Error("--seed: a seed is a whole number from 0 to 2^64 - 1, not " + text.substr(0, 40));
    return value;
}

kontext::Size size(const std::string& text) {
    const std::size_t cross = text.find_first_of("xX");
    const auto digits = [](const std::string& part) {
        return !part.empty() && part.size() < 10 && part.find_first_not_of("0123456789") == std::string::npos;
    };
    if (cross == std::string::npos || !digits(text.substr(0, cross)) || !digits(text.substr(cross + 1)))
        throw Error("--size takes WIDTHxHEIGHT, such as 1024x768, not '" + text.substr(0, 40) + "'");
    return {std::stoi(text.substr(0, cross)), std::stoi(text.substr(cross + 1))};
}

int positive(const std::string& flag, const std::string& text) {
    const int value = number<int>(flag, text, "int");
    if (value < 1) throw Error(flag + " must be 1 or more, not " + text);
    return value;
}

// Stores the value of a flag. Returns false if the flag is not known.
bool take(Arguments& into, const std::string& flag, const std::string& value) {
    if (flag == "-i" || flag == "--image") into.images.emplace_back(value);
    else if (flag == "-p" || flag == "--prompt") into.prompt = value;
    else if (flag == "-o" || flag == "--output") into.output = value;
    else if (flag == "--steps") into.edit.steps = positive(flag, value);
    else if (flag == "--guidance") into.edit.guidance = number<double>(flag, value, "float");
    else if (flag == "--seed") into.edit.seed = seed(value);
    else if (flag == "--size") into.edit.size = size(value);
    else if (flag == "--threads") into.load.threads = positive(flag, value);
    else return false;
    return true;
}

Arguments parse(const std::vector<std::string>& words) {
    constexpr const char* advice = " (kontext-edit-cpp --help shows the flags)";
    const std::string with_values = " -i --image -p --prompt -o --output --steps --guidance --seed --size --threads ";
    Arguments result;
    result.load.low_memory = true;  // one edit uses each network in one part only
    bool has_prompt = false;
    for (std::size_t i = 0; i < words.size(); ++i) {
        std::string flag = words[i];
        if (flag == "-h" || flag == "--help") result.help = true;
        else if (flag == "--version") result.version = true;
        else if (flag == "--quiet") result.quiet = true;
        else if (flag == "--verify") result.load.verify = true;
        else if (flag.size() > 1 && flag[0] == '-') {
            std::optional<std::string> value;
            if (const std::size_t equals = flag.find('='); flag[1] == '-' && equals != std::string::npos) {
                value = flag.substr(equals + 1);
                flag.resize(equals);
            }
            if (with_values.find(" " + flag + " ") == std::string::npos)
                throw Error("unrecognized arguments: " + words[i] + advice);
            if (!value && ++i == words.size()) throw Error("argument " + flag + ": expected one argument" + advice);
            take(result, flag, value ? *value : words[i]);
            has_prompt = has_prompt || flag == "-p" || flag == "--prompt";
        } else if (result.bundle.empty()) {
            result.bundle = flag;
        } else {
            throw Error("unrecognized arguments: " + flag + advice);
        }
    }
    if (result.help || result.version) return result;
    for (const auto& [missing, name] : {std::pair{result.bundle.empty(), "BUNDLE"},
                                        {!has_prompt, "-p/--prompt"},
                                        {result.output.empty(), "-o/--output"}})
        if (missing) throw Error(std::string("the following arguments are required: ") + name + advice);
    return result;
}

// Throws Error if the picture could not be saved. Called before the work, not after.
void check_writable(const fs::path& path) {
    std::string suffix = path.extension().string();
    for (char& c : suffix) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    if (suffix != ".png")
        throw Error(path.string() + ": cannot write pictures of type '" + (suffix.empty() ? "(none)" : suffix) +
                    "': use .png");
    if (fs::is_directory(path)) throw Error(path.string() + " is a folder: name a file");
    const fs::path folder = fs::absolute(path).parent_path();
    if (!fs::exists(folder)) throw Error(folder.string() + " does not exist: make the folder first");
    if (::access(folder.c_str(), W_OK) != 0) throw Error(path.string() + " cannot be written: " + std::strerror(errno));
}

// Ctrl-C ends the program immediately, except while the picture is being written.
std::mutex writing;

void watch_for_interrupt() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);  // inherited by every thread created later
    std::thread([set] {
        int signal = 0;
        while (sigwait(&set, &signal) != 0) {
        }
        const std::lock_guard<std::mutex> lock(writing);
        constexpr char text[] = "\ninterrupted\n";
        if (::write(STDERR_FILENO, text, sizeof text - 1) < 0) std::_Exit(130);
        std::_Exit(130);
    }).detach();
}

void show(int step, int steps) {
    std::fprintf(stderr, "\rstep %d/%d%s", step, steps, step == steps ? "\n" : "");
    std::fflush(stderr);
}

void run(Arguments& arguments) {
    check_writable(arguments.output);
    std::vector<kontext::Picture> references;
    for (const fs::path& path : arguments.images) references.push_back(kontext::read_picture(path));
    kontext::Pipeline pipeline(arguments.bundle, arguments.load);
    arguments.edit.warning = [](const std::string& text) { std::cerr << "warning: " << text << "\n"; };
    if (!arguments.quiet && ::isatty(STDERR_FILENO))
        arguments.edit.progress = [](const kontext::Progress& at) {
            show(at.step, at.steps);
            return true;
        };
    const kontext::Picture picture = pipeline.edit(references, arguments.prompt, arguments.edit);
    const std::lock_guard<std::mutex> lock(writing);
    kontext::write_png(picture, arguments.output);
    if (!arguments.quiet)
        std::cout << "wrote " << arguments.output.string() << " (" << picture.size.width << "x" << picture.size.height
                  << ")\n";
}

int failed(std::string text) {
    for (char& c : text)
        if (c == '\n' || c == '\r') c = ' ';
    std::cerr << "error: " << text << "\n";
    return 2;
}

}  // namespace

// Returns 0, 2 for an error that the user can fix, 130 after Ctrl-C.
int main(int count, char** words) {
    watch_for_interrupt();
    try {
        Arguments arguments = parse({words + 1, words + count});
        if (arguments.help) std::cout << usage;
        else if (arguments.version) std::cout << "kontext-edit-cpp " KONTEXT_VERSION "\n";
        else run(arguments);
        return 0;
    } catch (const std::bad_alloc&) {
        return failed("not enough memory: try a smaller --size");
    } catch (const std::exception& error) {
        return failed(error.what());
    }
}
