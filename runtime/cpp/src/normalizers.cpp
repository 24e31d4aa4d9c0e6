// Normalizers of a tokenizer.json: NFC, Lowercase, Replace, Strip, SentencePiece's precompiled character map,
// sequences.
#include <nlohmann/json.hpp>

#include "kontext/kontext.hpp"
#include "tokenizer.hpp"
#include "unicode.hpp"

namespace kontext {
namespace {

// Replaces each run of at least `least` characters for which `is` holds.
template <typename Is>
Text replace_runs(const Text& text, std::size_t least, const Text& content, Is is) {
    Text out;
    out.reserve(text.size());
    for (std::size_t i = 0; i < text.size();) {
        std::size_t end = i;
        while (end < text.size() && is(text[end])) ++end;
        if (end - i >= least) {
            out += content;
        } else {
            end += end == i;
            out.append(text, i, end - i);
        }
        i = end;
    }
    return out;
}

Text replace_all(const Text& text, const Text& pattern, const Text& content) {
    Text out;
    std::size_t done = 0;
    for (std::size_t at; (at = text.find(pattern, done)) != Text::npos; done = at + pattern.size()) {
        out.append(text, done, at - done);
        out += content;
    }
    return out.append(text, done);
}

Normalizer read_replace(const Json& settings) {
    const Text content = unicode::decode(settings.at("content").get<std::string>());
    const Json& pattern = settings.at("pattern");
    if (pattern.contains("String")) {
        const Text what = unicode::decode(pattern.at("String").get<std::string>());
        if (what.empty()) refuse("empty pattern");
        return [what, content](Text text) { return replace_all(text, what, content); };
    }
    const std::string regex = pattern.at("Regex");
    if (regex == "\\s+") return [content](Text text) { return replace_runs(text, 1, content, unicode::is_space); };
    if (regex == " {2,}")
        return [content](Text text) { return replace_runs(text, 2, content, [](char32_t c) { return c == U' '; }); };
    refuse("pattern " + regex);
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

// A Darts double-array trie from UTF-8 keys to offsets in a blob of NUL-terminated replacements.
class CharacterMap {
public:
    explicit CharacterMap(const std::string& data) {
        const auto word = [&data](std::size_t at) {
            std::uint32_t value = 0;
            for (std::size_t k = 4; k-- > 0;) value = value << 8 | static_cast<unsigned char>(data[at + k]);
            return value;
        };
        if (data.size() < 4 || word(0) % 4 != 0 || word(0) > data.size() - 4 || word(0) < 4)
            throw Error("precompiled_charsmap is damaged");
        const std::size_t end = 4 + word(0);
        for (std::size_t at = 4; at < end; at += 4) units.push_back(word(at));
        blob = data.substr(end);
    }

    Text operator()(const Text& text) const {
        Text out;
        out.reserve(text.size());
        for (std::size_t start = 0; start < text.size();) {
            const std::size_t end = unicode::grapheme_end(text, start);
            // Like the library: clusters below 6 bytes are replaced whole if a prefix of them has a replacement.
            if (end - start > 5 || !replace(text.substr(start, end - start), 5, out))
                for (std::size_t i = start; i < end; ++i)
                    if (!replace(text.substr(i, 1), 4, out)) out += text[i];
            start = end;
        }
        return out;
    }

private:
    // Appends the replacement of the shortest prefix of `part` that has one, if `part` has at most `limit` bytes.
    bool replace(const Text& part, std::size_t limit, Text& out) const {
        const std::string key = unicode::encode(part);
        if (key.size() > limit) return false;
        std::size_t node = offset(units[0]);
        for (char each : key) {
            const std::uint32_t label = static_cast<unsigned char>(each);
            if (label == 0) return false;
            node ^= label;
            if (node >= units.size() || (units[node] & 0x800000FF) != label) return false;
            const bool leaf = (units[node] >> 8 & 1) != 0;
            node ^= offset(units[node]);
            if (leaf) {
                const std::size_t at = node < units.size() ? units[node] & 0x7FFFFFFF : blob.size();
                if (at >= blob.size()) throw Error("the tokenizer's precompiled_charsmap is damaged");
                out += unicode::decode(blob.c_str() + at);
                return true;
            }
        }
        return false;
    }

    static std::size_t offset(std::uint32_t unit) { return std::size_t{unit >> 10} << ((unit & 1u << 9) >> 6); }

    std::vector<std::uint32_t> units;
    std::string blob;
};

Text strip(const Text& text, bool left, bool right) {
    std::size_t first = 0, last = text.size();
    while (left && first < last && unicode::is_space(text[first])) ++first;
    while (right && last > first && unicode::is_space(text[last - 1])) --last;
    return text.substr(first, last - first);
}

}  // namespace

Normalizer read_normalizer(const Json& settings, int depth) {
    if (settings.is_null()) return [](Text text) { return text; };
    const std::string type = settings.at("type");
    if (type == "NFC") return [](Text text) { return unicode::nfc(text); };
    if (type == "Lowercase") return [](Text text) { return unicode::lower_case(text); };
    if (type == "Replace") return read_replace(settings);
    if (type == "Strip") {
        const bool left = settings.at("strip_left"), right = settings.at("strip_right");
        return [left, right](Text text) { return strip(text, left, right); };
    }
    if (type == "Precompiled")
        return CharacterMap(base64(settings.at("precompiled_charsmap").get_ref<const std::string&>()));
    if (type == "Sequence" && depth < 4) {
        std::vector<Normalizer> steps;
        for (const Json& each : settings.at("normalizers")) steps.push_back(read_normalizer(each, depth + 1));
        return [steps](Text text) {
            for (const Normalizer& step : steps) text = step(std::move(text));
            return text;
        };
    }
    refuse("normalizer " + type);
}

}  // namespace kontext
