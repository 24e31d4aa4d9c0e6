// Prompts to token ids with a Hugging Face tokenizer.json, exactly as its own library does it, for the components that
// CLIP's and T5's files have. What is not known is refused when the file is read, never guessed at.
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

using Normalizer = std::function<Text(Text)>;
Normalizer read_normalizer(const Json& settings, int depth = 0);

// Parts a text; empty parts are left out.
using PreTokenizer = std::function<void(const Text& text, const std::function<void(const Text&)>& part)>;
PreTokenizer read_pre_tokenizer(const Json& settings, int depth = 0);

// Appends the ids of one part.
using Model = std::function<void(const Text& part, Ids& ids)>;
Model read_model(const Json& settings);
Model read_bpe(const Json& settings);
Model read_unigram(const Json& settings);

// "where" of a component that this reader does not know.
[[noreturn]] void refuse(const std::string& component);

class Tokenizer {
public:
    // Throws Error where the file is not a tokenizer, or one of another kind.
    explicit Tokenizer(const std::filesystem::path& path);

    // The ids of a prompt with its special tokens, at most `max_length`; `lost` is how many did not fit.
    Ids encode(std::string_view utf8, std::size_t max_length, std::size_t& lost) const;

private:
    struct AddedToken {
        Text content;
        std::int64_t id;
        bool strip_left, strip_right;
    };
    // Finds the tokens in a text: `token` is told their ids, `rest` what lies between them.
    static void part(const std::vector<AddedToken>& tokens, const Text& text,
                     const std::function<void(std::int64_t)>& token, const std::function<void(const Text&)>& rest);

    std::vector<AddedToken> raw, normalized;  // looked for before and after normalization; the longest first
    Normalizer normalizer;
    PreTokenizer pre_tokenizer;
    Model model;
    Ids before, after;  // special tokens around a prompt
};

}  // namespace kontext
