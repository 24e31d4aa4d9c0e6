// kontext-edit-cpp BUNDLE -i in.png --prompt "…" -o out.png: kontext-edit in C++, with the same flags.
#include <malloc.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <iostream>
#include <mutex>
#include <new>
#include <thread>

#include "arguments.hpp"

namespace {

namespace fs = std::filesystem;

constexpr int preview_scale = 8;  // a preview has a pixel for a latent; FLUX.1's autoencoder makes 8x8 pixels of one

// Ctrl-C and SIGTERM end the program immediately, except while the picture is being written.
std::mutex writing;

void watch_for_interrupt() {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);  // inherited by every thread created later
    std::thread([set] {
        int signal = 0;
        while (sigwait(&set, &signal) != 0) {
        }
        const std::lock_guard<std::mutex> lock(writing);
        constexpr char text[] = "\ninterrupted\n";
        const int code = 128 + signal;
        if (::write(STDERR_FILENO, text, sizeof text - 1) < 0) std::_Exit(code);
        std::_Exit(code);
    }).detach();
}

void show(int step, int steps) {
    std::fprintf(stderr, "\rstep %d/%d%s", step, steps, step == steps ? "\n" : "");
    std::fflush(stderr);
}

// out.png; out-0.png, out-1.png, … for several pictures.
std::vector<fs::path> output_paths(const fs::path& path, int count) {
    if (count == 1) return {path};
    std::vector<fs::path> result;
    for (int i = 0; i < count; ++i) {
        fs::path name = path.stem();
        name += "-" + std::to_string(i) + path.extension().string();
        result.push_back(path.parent_path() / name);
    }
    return result;
}

void show_devices(const std::string& provider) {
    for (const kontext::DeviceInfo& each : kontext::list_devices(provider))
        std::cout << (each.device.empty() ? "--provider " + each.provider : each.device) << "  " << each.description
                  << "\n";
}

void run(Arguments& arguments) {
    const std::vector<fs::path> paths = output_paths(arguments.output, arguments.num_images);
    for (const fs::path& path : paths) {
        if (!arguments.preview.empty() && fs::weakly_canonical(path) == fs::weakly_canonical(arguments.preview))
            throw kontext::Error("--preview and -o both name " + path.string() + ": only one of them can");
        kontext::check_writable(path);
    }
    if (!arguments.preview.empty()) kontext::check_writable(arguments.preview);
    kontext::Edit edit{{}, arguments.prompt};
    const std::string& rule = arguments.edit.reference_size;  // in pixels, it has digits
    const bool reduce = !arguments.edit.size && arguments.edit.reference_method != "stitch" &&
                        rule.find_first_of("0123456789") == std::string::npos;
    for (const fs::path& path : arguments.images) edit.references.push_back(kontext::read_picture(path, reduce));
    arguments.edit.warning = [](const std::string& text) { std::cerr << "warning: " << text << "\n"; };
    if (!arguments.mask.empty()) arguments.edit.mask = kontext::read_mask(arguments.mask, arguments.edit.warning);
    if (!arguments.init_image.empty()) arguments.edit.init_image = kontext::read_picture(arguments.init_image, reduce);
    const bool shown = !arguments.quiet && ::isatty(STDERR_FILENO);
    if (shown && (arguments.load.verify || !arguments.load.require_digest.empty()))
        std::cerr << "comparing the bundle's files with their SHA-256\n";
    kontext::Pipeline pipeline(arguments.bundle, arguments.load);
    pipeline.load_loras(arguments.loras);
    const std::string choice = pipeline.choice().empty() ? "" : "running with " + pipeline.choice() + "\n";
    if (shown) std::cout << choice << std::flush;
    if (shown || !arguments.preview.empty())
        arguments.edit.progress = [&](const kontext::Progress& at) {
            if (shown) show(at.step, at.steps);
            if (!arguments.preview.empty()) {
                const std::lock_guard<std::mutex> lock(writing);
                kontext::write_picture(pipeline.previews(preview_scale)[0], arguments.preview);
            }
            return true;
        };
    const std::vector<kontext::Picture> pictures =
        pipeline.edit_all({std::move(edit)}, arguments.num_images, arguments.edit);
    if (!arguments.quiet && !shown) std::cout << choice;
    for (std::size_t i = 0; i < pictures.size(); ++i) {
        const std::lock_guard<std::mutex> lock(writing);
        kontext::write_picture(pictures[i], paths[i]);
        if (!arguments.quiet)
            std::cout << "wrote " << paths[i].string() << " (" << pictures[i].size.width << "x"
                      << pictures[i].size.height << ")\n";
    }
}

int failed(std::string text) {
    for (char& c : text)
        if (c == '\n' || c == '\r') c = ' ';
    std::cerr << "error: " << text << "\n";
    return 2;
}

}  // namespace

// Returns 0, 2 for an error that the user can fix, 130 after Ctrl-C, 143 after SIGTERM.
int main(int count, char** words) {
    watch_for_interrupt();
    ::mallopt(M_MMAP_THRESHOLD, 1 << 20);  // freed tensors return to the system: runtime/glibc_malloc.py
    try {
        Arguments arguments = parse({words + 1, words + count});
        if (arguments.help) std::cout << usage;
        else if (arguments.version) std::cout << "kontext-edit-cpp " KONTEXT_VERSION "\n";
        else if (arguments.devices) show_devices(arguments.load.provider);
        else run(arguments);
        return 0;
    } catch (const std::bad_alloc&) {
        return failed("not enough memory: try a smaller --size, or fewer --num-images");
    } catch (const std::exception& error) {
        return failed(error.what());
    }
}
