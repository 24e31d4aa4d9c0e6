// Normalizers of a tokenizer.json: NFC, Lowercase, Replace, Strip, SentencePiece's precompiled character map,
// sequences.
#include <nlohmann/json.hpp>

#include "kontext/kontext.hpp"
#include "tokenizer.hpp"
#include "tokenizer_limits.hpp"
#include "unicode.hpp"

namespace kontext {
namespace {

// Writes a section anew, character by character; each stands for one of the old section's, in order.
class Rewriter {
public:
    explicit Rewriter(const Section& old) : old(old) { out.text.reserve(old.text.size()); }

    void add(char32_t c, std::size_t stands_for) {
        out.at_start += stands_for < old.at_start;
        out.text += c;
    }

    // The old section's characters up to `end`.
    void copy(std::size_t start, std::size_t end) {
        for (; start < end; ++start) add(old.text[start], start);
    }

    // The replacement of some characters stands, as in the library, for the last of them.
    void replace(std::size_t end, const Text& content) {
        for (char32_t c : content) add(c, end - 1);
    }

    Section take() { return std::move(out); }

private:
    const Section& old;
    Section out;
};

Section rewrite(const Section& old, const unicode::Steps& steps) {
    Rewriter rewriter(old);
    std::size_t at = 0;
    for (const auto& [c, taken] : steps) {
        rewriter.add(c, taken == 0 && at > 0 ? at - 1 : at);
        at += taken;
    }
    return rewriter.take();
}

// Replaces each run of at least `least` characters for which `is` holds.
template <typename Is>
Section replace_runs(const Section& section, std::size_t least, const Text& content, Is is) {
    const Text& text = section.text;
    Rewriter rewriter(section);
    for (std::size_t i = 0; i < text.size();) {
        std::size_t end = i;
        while (end < text.size() && is(text[end])) ++end;
        if (end - i >= least) {
            rewriter.replace(end, content);
        } else {
            end += end == i;
            rewriter.copy(i, end);
        }
        i = end;
    }
    return rewriter.take();
}

Section replace_all(const Section& section, const Text& pattern, const Text& content) {
    Rewriter rewriter(section);
    std::size_t done = 0;
    for (std::size_t at; (at = section.text.find(pattern, done)) != Text::npos; done = at + pattern.size()) {
        rewriter.copy(done, at);
        rewriter.replace(at + pattern.size(), content);
    }
    rewriter.copy(done, section.text.size());
    return rewriter.take();
}

Normalizer read_replace(const Json& settings) {
    const Text content = unicode::decode(settings.at("content").get<std::string>());
    const Json& pattern = settings.at("pattern");
    if (pattern.contains("String")) {
        const Text what = unicode::decode(pattern.at("String").get<std::string>());
        if (what.empty()) refuse("empty pattern");
        return [what, content](const Section& section) { return replace_all(section, what, content); };
    }
    const std::string regex = pattern.at("Regex");
    if (regex == "\\s+")
        return [content](const Section& section) { return replace_runs(section, 1, content, unicode::is_space); };
    if (regex == " {2,}")
        return [content](const Section& section) {
            return replace_runs(section, 2, content, [](char32_t c) { return c == U' '; });
        };
    refuse("pattern " + regex);
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

    Section operator()(const Section& section) const {
        const Text& text = section.text;
        unicode::Steps out;
        out.reserve(text.size());
        for (std::size_t start = 0; start < text.size();) {
            const std::size_t end = unicode::grapheme_end(text, start);
            // Like the library: clusters below 6 bytes are replaced whole if a prefix of them has a replacement.
            if (end - start > 5 || !replace(text.substr(start, end - start), 5, out))
                for (std::size_t i = start; i < end; ++i)
                    if (!replace(text.substr(i, 1), 4, out)) out.push_back({text[i], 1});
            start = end;
        }
        return rewrite(section, out);
    }

private:
    // Appends the replacement of the shortest prefix of `part` that has one, if `part` has at most `limit` bytes.
    bool replace(const Text& part, std::size_t limit, unicode::Steps& out) const {
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
                append(unicode::decode(blob.c_str() + at), part.size(), out);
                return true;
            }
        }
        return false;
    }

    // The replacement of `count` characters: one each, the last for those left over. If there is none, the character
    // before takes them, if there is one: the library's offsets count so.
    static void append(const Text& replacement, std::size_t count, unicode::Steps& out) {
        for (char32_t c : replacement) {
            out.push_back({c, count > 0 ? std::size_t{1} : 0});
            count -= count > 0;
        }
        if (!out.empty()) out.back().taken += count;
    }

    static std::size_t offset(std::uint32_t unit) { return std::size_t{unit >> 10} << ((unit & 1u << 9) >> 6); }

    std::vector<std::uint32_t> units;
    std::string blob;
};

Section strip(const Section& section, bool left, bool right) {
    const Text& text = section.text;
    std::size_t first = 0, last = text.size();
    while (left && first < last && unicode::is_space(text[first])) ++first;
    while (right && last > first && unicode::is_space(text[last - 1])) --last;
    return section.part(first, last - first);
}

}  // namespace

Normalizer read_normalizer(const Json& settings, int depth) {
    if (settings.is_null()) return [](Section section) { return section; };
    const std::string type = settings.at("type");
    if (type == "NFC") return [](const Section& section) { return rewrite(section, unicode::nfc(section.text)); };
    if (type == "Lowercase")
        return [](const Section& section) { return rewrite(section, unicode::lower_case(section.text)); };
    if (type == "Replace") return read_replace(settings);
    if (type == "Strip") {
        const bool left = settings.at("strip_left"), right = settings.at("strip_right");
        return [left, right](const Section& section) { return strip(section, left, right); };
    }
    if (type == "Precompiled")
        return CharacterMap(base64(settings.at("precompiled_charsmap").get_ref<const std::string&>()));
    if (type == "Sequence" && depth < 4) {
        std::vector<Normalizer> steps;
        for (const Json& each : settings.at("normalizers")) steps.push_back(read_normalizer(each, depth + 1));
        return [steps](Section section) {
            for (const Normalizer& step : steps) section = step(std::move(section));
            return section;
        };
    }
    refuse("normalizer " + type);
}

}  // namespace kontext
