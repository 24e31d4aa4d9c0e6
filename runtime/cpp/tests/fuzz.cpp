// A libFuzzer target for each reader of files that someone else wrote; tests/torture/test_cpp_readers.py builds and runs it.
// KONTEXT_FUZZ names the reader, KONTEXT_FUZZ_FOLDER a folder for its files; for "manifest", a bundle.
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>

#include "bundle.hpp"
#include "graph_file.hpp"
#include "loras.hpp"
#include "sampling.hpp"
#include "tokenizer.hpp"

namespace {

using namespace kontext;

const char* setting(const char* name) {
    const char* value = std::getenv(name);
    if (value == nullptr) std::abort();
    return value;
}

fs::path written(const fs::path& path, const std::string& data) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << data;
    return path;
}

void read_manifest(const fs::path& folder, const std::string& data) {
    written(folder / "manifest.json", data);
    const Bundle bundle = Bundle::open(folder);
    schedule(bundle.sampler.steps, 64, bundle.sampler);
    rope_tables(8, {{{4, 4}, 0, 0, 0}}, bundle);
}

void read_graph(const fs::path&, const std::string& data) {
    check_graph(data, "x.onnx", "text_encoder", {"weights/text_encoder.safetensors"});
}

void read_tokenizer(const fs::path& folder, const std::string& data) {
    const Tokenizer tokenizer(data, folder / "tokenizer.json");
    for (const char* prompt : {"make the red circle blue", "\xC3\xA9 \xE2\x98\x83 <|endoftext|> aaaa b", ""}) {
        std::size_t lost = 0;
        tokenizer.encode(prompt, 24, lost);
    }
}

void read_lora(const fs::path& folder, const std::string& data) {
    Bundle bundle{};
    bundle.lora_slots = LoraSlots{8, {{"modulation", {3, 5}}, {"transformer", {6, 8}}}, "a layout"};
    Loras(bundle, {{written(folder / "x.safetensors", data), 0.5}});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const std::string reader = setting("KONTEXT_FUZZ");
    static const fs::path folder = setting("KONTEXT_FUZZ_FOLDER");
    const std::string text(reinterpret_cast<const char*>(data), size);
    try {
        if (reader == "manifest") read_manifest(folder, text);
        if (reader == "graph") read_graph(folder, text);
        if (reader == "tokenizer") read_tokenizer(folder, text);
        if (reader == "lora") read_lora(folder, text);
    } catch (const Error& error) {
        if (std::string(error.what()).find('\n') != std::string::npos) std::abort();  // an error is one line
    }
    return 0;
}
