// Pre-tokenizers of a tokenizer.json: CLIP's Split, ByteLevel, WhitespaceSplit, Metaspace, sequences.
#include <nlohmann/json.hpp>

#include "kontext/kontext.hpp"
#include "tokenizer.hpp"
#include "unicode.hpp"

namespace kontext {
namespace {

using Part = std::function<void(const Section&)>;
using Is = bool (*)(char32_t);

bool is_symbol(char32_t c) { return !unicode::is_space(c) && !unicode::is_letter(c) && !unicode::is_number(c); }

std::size_t run(const Text& text, std::size_t at, Is is) {
    const std::size_t start = at;
    while (at < text.size() && is(text[at])) ++at;
    return at - start;
}

// An alternative of a pattern: a literal, or one or more characters of a class.
struct Alternative {
    Text literal;
    Is is = nullptr;
    bool repeated = false;

    std::size_t match(const Text& text, std::size_t at) const {
        if (is == nullptr) return text.compare(at, literal.size(), literal) == 0 ? literal.size() : 0;
        return repeated ? run(text, at, is) : std::size_t{is(text[at])};
    }
};

// A pattern of literals and the classes of CLIP's pattern, separated by |; anything else is refused.
std::vector<Alternative> parse(const std::string& pattern) {
    std::vector<Alternative> result;
    for (std::size_t at = 0; at <= pattern.size();) {
        std::size_t end = at;
        while (end < pattern.size() && pattern[end] != '|') end += pattern[end] == '\\' ? 2 : 1;
        end = std::min(end, pattern.size());
        std::string part = pattern.substr(at, end - at);
        at = end + 1;
        const bool repeated = !part.empty() && part.back() == '+';
        const std::string set = repeated ? part.substr(0, part.size() - 1) : part;
        if (set == "[\\p{L}]" || set == "\\p{L}") {
            result.push_back({{}, unicode::is_letter, repeated});
        } else if (set == "[\\p{N}]" || set == "\\p{N}") {
            result.push_back({{}, unicode::is_number, repeated});
        } else if (set == "[^\\s\\p{L}\\p{N}]") {
            result.push_back({{}, is_symbol, repeated});
        } else {
            std::string literal;
            for (std::size_t i = 0; i < part.size(); ++i) {
                const bool escaped = part[i] == '\\' && i + 1 < part.size() && std::ispunct(part[i + 1]);
                if (!escaped && std::string("\\[](){}.*+?^$").find(part[i]) != std::string::npos)
                    refuse("pattern " + pattern);
                literal += part[i += escaped];
            }
            if (literal.empty()) refuse("pattern " + pattern);
            result.push_back({unicode::decode(literal)});
        }
    }
    return result;
}

// Keeps what the pattern matches, drops the rest: behavior "Removed", inverted.
PreTokenizer read_split(const Json& settings) {
    if (settings.at("behavior") != "Removed" || settings.at("invert") != true)
        refuse("split that keeps unmatched text");
    const auto alternatives = parse(settings.at("pattern").at("Regex"));
    return [alternatives](const Section& section, const Part& part) {
        const Text& text = section.text;
        for (std::size_t at = 0; at < text.size();) {
            std::size_t length = 0;
            for (const Alternative& each : alternatives)
                if ((length = each.match(text, at)) != 0) break;
            if (length != 0) part(section.part(at, length));
            at += length != 0 ? length : 1;
        }
    };
}

// GPT-2's pattern: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
std::size_t gpt2_match(const Text& text, std::size_t at) {
    static const Text contractions[] = {U"'s", U"'t", U"'re", U"'ve", U"'m", U"'ll", U"'d"};
    for (const Text& each : contractions)
        if (text.compare(at, each.size(), each) == 0) return each.size();
    const std::size_t blank = text[at] == U' ' ? 1 : 0;
    for (Is is : {Is(unicode::is_letter), Is(unicode::is_number), Is(is_symbol)})
        if (const std::size_t length = run(text, at + blank, is)) return blank + length;
    const std::size_t spaces = run(text, at, unicode::is_space);
    return at + spaces < text.size() && spaces > 1 ? spaces - 1 : spaces;
}

// The character for a byte: printable bytes stand for themselves, the others are mapped from U+0100 on.
char32_t byte_character(unsigned char byte) {
    const auto printable = [](int b) { return (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE; };
    if (printable(byte)) return byte;
    char32_t next = 0x100;
    for (int b = 0; b < byte; ++b) next += !printable(b);
    return next;
}

Section bytes_of(const Section& section) {
    static const auto table = [] {
        std::array<char32_t, 256> values{};
        for (int b = 0; b < 256; ++b)
            values[static_cast<std::size_t>(b)] = byte_character(static_cast<unsigned char>(b));
        return values;
    }();
    Section out;
    out.at_start = unicode::encode(section.text.substr(0, section.at_start)).size();
    for (char each : unicode::encode(section.text)) out.text += table[static_cast<unsigned char>(each)];
    return out;
}

// Both stand for the first character.
void prepend(Section& section, char32_t c) {
    section.text.insert(section.text.begin(), c);
    section.at_start += section.at_start > 0;
}

PreTokenizer read_byte_level(const Json& settings) {
    const bool prefix = settings.at("add_prefix_space"), pattern = settings.value("use_regex", true);
    return [prefix, pattern](Section section, const Part& part) {
        if (prefix && section.text[0] != U' ') prepend(section, U' ');
        if (!pattern) return part(bytes_of(section));
        for (std::size_t at = 0; at < section.text.size();) {
            const std::size_t length = gpt2_match(section.text, at);
            part(bytes_of(section.part(at, length)));
            at += length;
        }
    };
}

void split_whitespace(const Section& section, const Part& part) {
    const Text& text = section.text;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t length = run(text, at, [](char32_t c) { return !unicode::is_space(c); });
        if (length != 0) part(section.part(at, length));
        at += length + 1;
    }
}

PreTokenizer read_metaspace(const Json& settings) {
    const Text replacement = unicode::decode(settings.at("replacement").get<std::string>());
    const std::string scheme = settings.value("prepend_scheme", "always");
    if (scheme != "always" && scheme != "first" && scheme != "never") refuse("metaspace scheme " + scheme);
    if (replacement.size() != 1) refuse("metaspace replacement " + settings.at("replacement").get<std::string>());
    // What the field was called before: the library refuses a contradiction too.
    if (settings.value("add_prefix_space", Json()) == false && scheme != "never")
        refuse("metaspace scheme " + scheme + " without add_prefix_space");
    const bool split = settings.value("split", Json()) != false;
    return [mark = replacement[0], scheme, split](Section section, const Part& part) {
        for (char32_t& c : section.text)
            if (c == U' ') c = mark;
        const bool wanted = scheme == "always" || (scheme == "first" && section.at_start > 0);
        if (wanted && section.text[0] != mark) prepend(section, mark);
        if (!split) return part(section);
        for (std::size_t at = 0; at < section.text.size();) {  // each mark starts a part
            const std::size_t end = std::min(section.text.find(mark, at + 1), section.text.size());
            part(section.part(at, end - at));
            at = end;
        }
    };
}

}  // namespace

PreTokenizer read_pre_tokenizer(const Json& settings, int depth) {
    if (settings.is_null()) return [](const Section& section, const Part& part) { part(section); };
    const std::string type = settings.at("type");
    if (type == "Split") return read_split(settings);
    if (type == "ByteLevel") return read_byte_level(settings);
    if (type == "WhitespaceSplit") return split_whitespace;
    if (type == "Metaspace") return read_metaspace(settings);
    if (type == "Sequence" && depth < 4) {
        PreTokenizer chain = [](const Section& section, const Part& part) { part(section); };
        for (const Json& each : settings.at("pretokenizers"))
            chain = [first = chain, second = read_pre_tokenizer(each, depth + 1)](const Section& section, const Part& part) {
                first(section, [&](const Section& piece) { second(piece, part); });
            };
        return chain;
    }
    refuse("pre-tokenizer " + type);
}

}  // namespace kontext
