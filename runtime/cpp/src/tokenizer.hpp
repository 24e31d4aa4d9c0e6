// Prompts to token ids with a Hugging Face tokenizer.json, exactly as the `tokenizers` library, for the components of
// CLIP's and T5's files. Files with other components are refused when they are read.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace kontext {

using Json = nlohmann::json;
using Text = std::u32string;
using Ids = std::vector<std::int64_t>;

// A part of a prompt while it is normalized and split.
struct Section {
    Text text;
    // How many of its first characters stand for the prompt's first one: more than 1 where that was written out as
    // several, 0 where the section begins further on or its beginning was removed. Metaspace's "first" asks for it.
    std::size_t at_start = 0;

    Section part(std::size_t start, std::size_t length) const {
        return {text.substr(start, length), at_start > start ? at_start - start : 0};
    }
};

using Normalizer = std::function<Section(Section)>;
Normalizer read_normalizer(const Json& settings, int depth = 0);

// Splits a section; empty parts are left out.
using PreTokenizer = std::function<void(const Section& section, const std::function<void(const Section&)>& part)>;
PreTokenizer read_pre_tokenizer(const Json& settings, int depth = 0);

// Appends the ids of one part.
using Model = std::function<void(const Text& part, Ids& ids)>;
Model read_model(const Json& settings);
Model read_bpe(const Json& settings);
Model read_unigram(const Json& settings);

// Throws Error for a component that this reader does not support.
[[noreturn]] void refuse(const std::string& component);

class Tokenizer {
public:
    // Of what a file holds, which errors call `path`. Throws Error if it is not a tokenizer, or has unsupported
    // components.
    Tokenizer(const std::string& file, const std::filesystem::path& path);

    // The number of special tokens around a prompt.
    std::size_t special() const { return before.size() + after.size(); }

    // The ids of a prompt with its special tokens, at most `max_length`; `lost` is the number of tokens cut off.
    Ids encode(std::string_view utf8, std::size_t max_length, std::size_t& lost) const;

private:
    struct AddedToken {
        Text content;
        std::int64_t id;
        bool strip_left, strip_right;
    };
    // Finds the added tokens in a section: calls `token` with their ids and `rest` with the text between them.
    static void part(const std::vector<AddedToken>& tokens, const Section& section,
                     const std::function<void(std::int64_t)>& token, const std::function<void(const Section&)>& rest);

    std::vector<AddedToken> raw, normalized;  // matched before and after normalization; longest first
    Normalizer normalizer;
    PreTokenizer pre_tokenizer;
    Model model;
    Ids before, after;  // special tokens around a prompt
};

}  // namespace kontext
