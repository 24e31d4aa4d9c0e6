// What text may become in a tokenizer: the limits of runtime/tokenizer_file.py, with which a test compares them. Which
// patterns are read is decided where they are: those here take time in proportion to the text.
#pragma once

#include <cstddef>
#include <string>

#include <nlohmann/json_fwd.hpp>

namespace kontext {

constexpr std::size_t max_components = 32;  // normalizers, and pre-tokenizers, in all
constexpr std::size_t max_growth = 64;      // characters that they may make of one

// Throws Error if the normalizer and the pre-tokenizer of a file could make a prompt longer than that.
void check_components(const nlohmann::json& normalizer, const nlohmann::json& pre_tokenizer);

// Decodes base64 up to its padding. Throws Error.
std::string base64(const std::string& text);

}  // namespace kontext
