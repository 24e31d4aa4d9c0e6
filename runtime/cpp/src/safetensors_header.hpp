// The header of a safetensors file, read and checked in full, as safetensors_header.py does it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace kontext {

struct TensorEntry {
    std::string dtype;  // as safetensors names it, such as F32
    std::vector<std::int64_t> shape;
    std::uint64_t start, size;  // bytes, from the file's start
};

struct SafetensorsHeader {
    std::map<std::string, TensorEntry> tensors;
    std::map<std::string, std::string> metadata;  // what is text of it
};

// Reads no tensor. Throws Error if the file is missing or truncated, or its header is damaged.
SafetensorsHeader read_safetensors_header(const std::filesystem::path& path);

}  // namespace kontext
