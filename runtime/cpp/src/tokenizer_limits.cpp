#include "tokenizer_limits.hpp"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>

#include <nlohmann/json.hpp>

#include "kontext/kontext.hpp"
#include "unicode.hpp"

namespace kontext {
namespace {

using Json = nlohmann::json;

std::size_t characters(const Json& text) {
    const auto& utf8 = text.get_ref<const std::string&>();
    return static_cast<std::size_t>(
        std::count_if(utf8.begin(), utf8.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

// Characters of the longest text in SentencePiece's character map: a trie of so many bytes, then NUL-terminated texts.
std::size_t longest_replacement(const std::string& charsmap) {
    if (charsmap.size() < 4) throw Error("precompiled_charsmap is damaged");
    std::size_t trie = 0, longest = 1, length = 0;
    for (std::size_t k = 4; k-- > 0;) trie = trie << 8 | static_cast<unsigned char>(charsmap[k]);
    for (std::size_t at = 4 + trie; at < charsmap.size(); ++at) {
        const auto byte = static_cast<unsigned char>(charsmap[at]);
        length = byte == 0 ? 0 : length + ((byte & 0xC0) != 0x80);
        longest = std::max(longest, length);
    }
    return longest;
}

// Characters that a component may make of one. What changes a text only once, such as NFC, counts as 1.
std::size_t growth_of(const Json& step) {
    const std::string type = step.at("type");
    if (type == "Replace") {
        const std::size_t content = characters(step.at("content"));
        const Json& pattern = step.at("pattern");
        if (!pattern.contains("String")) return 1 + content;
        const std::size_t length = std::max<std::size_t>(1, characters(pattern.at("String")));
        return std::max<std::size_t>(1, (content + length - 1) / length);
    }
    if (type == "Precompiled") return longest_replacement(base64(step.at("precompiled_charsmap")));
    return type == "ByteLevel" ? 4 : 1;  // a character for each of its bytes in UTF-8
}

// Calls `visit` with the settings of all components, those of sequences in their place.
void each_step(const Json& part, const std::function<void(const Json&)>& visit, int depth = 0) {
    if (part.is_null()) return;
    const char* inner = part.contains("normalizers") ? "normalizers" : "pretokenizers";
    if (part.at("type") != "Sequence" || !part.contains(inner)) return visit(part);
    if (depth == 4) throw Error("its sequences are nested too deeply");
    for (const Json& each : part.at(inner)) each_step(each, visit, depth + 1);
}

}  // namespace

void check_components(const Json& normalizer, const Json& pre_tokenizer) {
    std::size_t growth = 1;
    for (const Json* part : {&normalizer, &pre_tokenizer}) {
        std::size_t count = 0;
        each_step(*part, [&](const Json& step) {
            if (++count > max_components)
                throw Error("it has more than " + std::to_string(max_components) + " steps");
            growth *= growth_of(step);
            if (growth > max_growth)
                throw Error("its " + step.at("type").get<std::string>() + " could make a prompt " +
                            std::to_string(growth) + " times as long");
        });
    }
}

std::string base64(const std::string& text) {
    static const std::string alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string out;
    std::uint32_t bits = 0;
    int count = 0;
    for (char c : text) {
        if (c == '=') break;
        const std::size_t value = alphabet.find(c);
        if (value == std::string::npos) throw Error("precompiled_charsmap is not base64");
        bits = bits << 6 | static_cast<std::uint32_t>(value);
        if ((count += 6) >= 8) out += static_cast<char>(bits >> (count -= 8) & 0xFF);
    }
    return out;
}

}  // namespace kontext
