// Prints intermediate results, which the tests compare with the Python runtime: kontext-probe WHAT ARGUMENTS…
#include <cstdlib>
#include <iostream>
#include <iterator>

#include <nlohmann/json.hpp>

#include "bundle.hpp"
#include "masks.hpp"
#include "onnxruntime_backend.hpp"
#include "onnxruntime_library.hpp"
#include "references.hpp"
#include "regular_file.hpp"
#include "resize.hpp"
#include "sampling.hpp"
#include "sha256.hpp"
#include "tokenizer.hpp"

namespace {

using namespace kontext;
using Words = std::vector<std::string>;

template <typename Value>
void raw(const std::vector<Value>& values) {
    std::cout.write(reinterpret_cast<const char*>(values.data()),
                    static_cast<std::streamsize>(values.size() * sizeof(Value)));
}

std::string standard_input() { return {std::istreambuf_iterator<char>(std::cin), {}}; }

// FILE MAX_LENGTH: reads prompts from stdin, each as its number of bytes, a line feed and the bytes; prints lines of
// "lost id id …", or "error: …" for a prompt that is refused.
void ids(const Words& words) {
    const Tokenizer tokenizer(read_regular(words.at(0), max_json_bytes, "a tokenizer"), words.at(0));
    const std::string text = standard_input();
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t start = text.find('\n', at) + 1;
        const std::size_t length = std::stoul(text.substr(at, start - at));
        try {
            std::size_t lost = 0;
            const auto prompt = std::string_view(text).substr(start, length);
            const Ids ids = tokenizer.encode(prompt, std::stoul(words.at(1)), lost);
            std::cout << lost;
            for (std::int64_t id : ids) std::cout << ' ' << id;
        } catch (const Error& error) {
            std::cout << "error: " << error.what();
        }
        std::cout << '\n';
        at = start + length;
    }
}

// SEED SIZE
void noise(const Words& words) { raw(randn(std::stoull(words.at(0)), std::stoul(words.at(1)))); }

// BUNDLE STEPS TOKENS
void times(const Words& words) {
    raw(schedule(std::stoi(words.at(1)), std::stoi(words.at(2)), Bundle::open(words.at(0)).sampler));
}

// METHOD [WIDTH HEIGHT]…: lines of "image top left" of references of these sizes
void places(const Words& words) {
    std::vector<Size> sizes;
    for (std::size_t i = 1; i + 1 < words.size(); i += 2)
        sizes.push_back({std::stoi(words[i]), std::stoi(words[i + 1])});
    for (const Place& place : places_of(words.at(0), sizes))
        std::cout << place.image << ' ' << place.top << ' ' << place.left << '\n';
}

// FILE…: the canvas of stitched references
void canvas(const Words& words) {
    std::vector<Picture> pictures;
    for (const std::string& file : words) pictures.push_back(read_picture(file));
    const Picture stitched = stitch(pictures);
    std::cout << stitched.size.width << ' ' << stitched.size.height << '\n';
    raw(stitched.rgb);
}

// BUNDLE TEXT_TOKENS [ROWS COLUMNS IMAGE ROW COLUMN]…
void rope(const Words& words) {
    std::vector<PlacedGrid> grids;
    const auto number = [&](std::size_t i) { return std::stoi(words.at(i)); };
    for (std::size_t i = 2; i < words.size(); i += 5)
        grids.push_back({{number(i), number(i + 1)}, number(i + 2), number(i + 3), number(i + 4)});
    const auto [cos, sin] = rope_tables(std::stoi(words.at(1)), grids, Bundle::open(words.at(0)));
    raw(cos);
    raw(sin);
}

// FILE BLUR: a mask, blurred
void mask(const Words& words) {
    const Picture picture = blurred(read_mask(words.at(0)), std::stoi(words.at(1)));
    std::cout << picture.size.width << ' ' << picture.size.height << '\n';
    raw(picture.rgb);
}

// FILE [WIDTH HEIGHT]: large JPEG files are reduced
void pixels(const Words& words) {
    Picture picture = read_picture(words.at(0), true);
    if (words.size() > 1) picture = resize(picture, {std::stoi(words.at(1)), std::stoi(words.at(2))});
    std::cout << picture.size.width << ' ' << picture.size.height << '\n';
    raw(picture.rgb);
}

// Reads names of picture files from stdin, one a line; prints "WIDTH HEIGHT" or "error: …" of each.
void pictures(const Words&) {
    for (std::string file; std::getline(std::cin, file);) {
        try {
            const Picture picture = read_picture(file);
            std::cout << picture.size.width << ' ' << picture.size.height << std::endl;
        } catch (const Error& error) {
            std::cout << "error: " << error.what() << std::endl;
        }
    }
}

// BUNDLE STEPS SEED [WIDTHxHEIGHT] METHOD PROMPT [FILE]…: the latents after the last step, in ONNX Runtime on the CPU
void latents(const Words& words) {
    EditOptions options;
    options.steps = std::stoi(words.at(1));
    options.seed = std::stoull(words.at(2));
    options.size = parse_size(words.at(3));
    options.reference_method = words.at(4);
    options.progress = [](const Progress& at) {
        if (at.step == at.steps)
            raw(Floats(at.latents, at.latents + at.extents[0] * at.extents[1] * at.extents[2] * at.extents[3]));
        return true;
    };
    std::vector<Picture> references;
    for (std::size_t i = 6; i < words.size(); ++i) references.push_back(read_picture(words[i]));
    LoadOptions load;
    load.device = "cpu";
    Pipeline(words.at(0), load).edit(references, words.at(5), options);
}

// Sessions whose verbose log says which provider runs which node.
class Verbose : public OnnxRuntimeBackend {
public:
    using OnnxRuntimeBackend::OnnxRuntimeBackend;

protected:
    void adjust(Ort::SessionOptions& options) override { options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_VERBOSE); }
};

// BUNDLE DEVICE: loads every graph; prints its name and then where ONNX Runtime placed its nodes.
void placement(const Words& words) {
    const Bundle bundle = Bundle::open(words.at(0));
    Verbose backend(bundle, words.at(1), 1);
    for (const auto& [graph, entry] : bundle.graphs) {
        const LogCapture log;
        backend.load(graph);
        backend.release(graph);
        std::cout << "graph " << graph << '\n';
        for (const std::string& text : log.messages)
            if (text.find("placed on [") != std::string::npos ||
                text.find("Memcpy nodes are added") != std::string::npos || text.compare(0, 2, "  ") == 0)
                std::cout << text << '\n';
        if (const std::string heavy = heavy_on_cpu(log.messages); !heavy.empty())
            std::cout << "heavy on the CPU: " << heavy << '\n';
    }
}

void digest(const Words&) { std::cout << sha256(standard_input()) << '\n'; }

}  // namespace

int main(int count, char** arguments) {
    const std::map<std::string, void (*)(const Words&)> commands = {
        {"ids", ids},       {"noise", noise},     {"times", times},   {"rope", rope},
        {"mask", mask}, {"pixels", pixels}, {"latents", latents}, {"digest", digest}, {"placement", placement},
        {"places", places}, {"canvas", canvas}, {"pictures", pictures}};
    try {
        const Words words(arguments + 1, arguments + count);
        commands.at(words.at(0))({words.begin() + 1, words.end()});
        return 0;
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 2;
    }
}
