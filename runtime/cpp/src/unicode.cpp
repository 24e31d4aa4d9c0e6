#include "unicode.hpp"

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "kontext/kontext.hpp"

namespace kontext::unicode {
namespace {

struct Range {
    char32_t first, last;
};
struct Shift {
    char32_t first, last;
    std::int32_t by;
};
struct Expansion {
    char32_t first;
    char32_t parts[4];  // shorter ones end with 0
};
struct Composition {
    char32_t first, second, composed;
};
struct Class {
    char32_t first, last;
    std::uint8_t value;
};
enum class Break : std::uint8_t {
    Other,
    CR,
    LF,
    Control,
    Extend,
    ZWJ,
    Prepend,
    SpacingMark,
    L,
    V,
    T,
    LV,
    LVT,
    Pictographic
};
struct Breaking {
    char32_t first, last;
    Break value;
};

#include "unicode_tables.inc"

// The entry of a sorted table whose range contains `c`, or null.
template <typename Entry, std::size_t size>
const Entry* find(const Entry (&table)[size], char32_t c) {
    const auto* next = std::upper_bound(std::begin(table), std::end(table), c,
                                        [](char32_t value, const Entry& entry) { return value < entry.first; });
    if (next == std::begin(table)) return nullptr;
    const Entry* entry = next - 1;
    if constexpr (std::is_same_v<Entry, Expansion>) return entry->first == c ? entry : nullptr;
    else return c <= entry->last ? entry : nullptr;
}

constexpr char32_t hangul_first = 0xAC00, l_first = 0x1100, v_first = 0x1161, t_before = 0x11A7;
constexpr char32_t l_count = 19, v_count = 21, t_count = 28, hangul_count = l_count * v_count * t_count;

bool is_hangul(char32_t c) { return c >= hangul_first && c - hangul_first < hangul_count; }

void append_decomposed(Steps& out, char32_t c) {
    const std::size_t first = out.size();
    if (is_hangul(c)) {
        const char32_t index = c - hangul_first;
        out.push_back({l_first + index / (v_count * t_count), 0});
        out.push_back({v_first + index / t_count % v_count, 0});
        if (index % t_count != 0) out.push_back({t_before + index % t_count, 0});
    } else if (const Expansion* found = c < 0x80 ? nullptr : find(decompositions, c)) {
        for (char32_t part : found->parts)
            if (part != 0) out.push_back({part, 0});
    } else {
        out.push_back({c, 0});
    }
    out[first].taken = 1;
}

int combining_class(char32_t c) {
    const Class* found = c < 0x300 ? nullptr : find(combining_classes, c);
    return found ? found->value : 0;
}

// The primary composite of two characters, or 0.
char32_t composed(char32_t a, char32_t b) {
    if (a >= l_first && a < l_first + l_count && b >= v_first && b < v_first + v_count)
        return hangul_first + ((a - l_first) * v_count + (b - v_first)) * t_count;
    if (is_hangul(a) && (a - hangul_first) % t_count == 0 && b > t_before && b < t_before + t_count)
        return a + (b - t_before);
    const auto* found = std::lower_bound(std::begin(compositions), std::end(compositions), b,
                                         [a](const Composition& entry, char32_t) { return entry.first < a; });
    for (; found != std::end(compositions) && found->first == a; ++found)
        if (found->second == b) return found->composed;
    return 0;
}

Break break_of(char32_t c) {
    if (c == '\r') return Break::CR;
    if (c == '\n') return Break::LF;
    if (is_hangul(c)) return (c - hangul_first) % t_count == 0 ? Break::LV : Break::LVT;
    const Breaking* found = find(breaks, c);
    return found ? found->value : Break::Other;
}

// Rules GB3 to GB9b, which depend on the two neighbours only.
bool joins(Break before, Break after) {
    if (before == Break::CR) return after == Break::LF;
    for (Break each : {before, after})
        if (each == Break::CR || each == Break::LF || each == Break::Control) return false;
    if (before == Break::L && (after == Break::L || after == Break::V || after == Break::LV || after == Break::LVT))
        return true;
    if ((before == Break::LV || before == Break::V) && (after == Break::V || after == Break::T)) return true;
    if ((before == Break::LVT || before == Break::T) && after == Break::T) return true;
    return after == Break::Extend || after == Break::ZWJ || after == Break::SpacingMark || before == Break::Prepend;
}

}  // namespace

bool is_letter(char32_t c) { return find(letters, c) != nullptr; }
bool is_number(char32_t c) { return find(numbers, c) != nullptr; }
bool is_space(char32_t c) { return find(spaces, c) != nullptr; }

Steps lower_case(std::u32string_view text) {
    Steps out;
    out.reserve(text.size());
    for (char32_t c : text) {
        if (const Expansion* found = c < 0x80 ? nullptr : find(lower_expansions, c)) {
            for (std::size_t i = 0; i < std::size(found->parts) && found->parts[i] != 0; ++i)
                out.push_back({found->parts[i], i == 0 ? std::size_t{1} : 0});
        } else {
            const Shift* shift = find(lower_shifts, c);
            out.push_back({shift ? static_cast<char32_t>(static_cast<std::int32_t>(c) + shift->by) : c, 1});
        }
    }
    return out;
}

Steps nfc(std::u32string_view text) {
    Steps parts;
    parts.reserve(text.size());
    for (char32_t c : text) append_decomposed(parts, c);
    for (std::size_t start = 0; start < parts.size();) {  // canonical order: sorts each run of marks by class
        std::size_t end = start;
        while (end < parts.size() && combining_class(parts[end].c) != 0) ++end;
        std::stable_sort(parts.begin() + static_cast<std::ptrdiff_t>(start),
                         parts.begin() + static_cast<std::ptrdiff_t>(end),
                         [](const Step& a, const Step& b) { return combining_class(a.c) < combining_class(b.c); });
        start = end + 1;
    }
    Steps out;
    out.reserve(parts.size());
    std::size_t starter = std::u32string::npos;  // in `out`
    int last_class = 0;                          // of the last mark after the starter; 0: none
    for (const Step& part : parts) {
        const int own = combining_class(part.c);
        const bool adjacent = starter != std::u32string::npos && starter + 1 == out.size();
        if (starter != std::u32string::npos && (adjacent || last_class < own)) {
            if (char32_t both = composed(out[starter].c, part.c)) {
                out[starter] = {both, out[starter].taken + part.taken};
                continue;
            }
        }
        if (own == 0) starter = out.size();
        last_class = own;
        out.push_back(part);
    }
    return out;
}

std::size_t grapheme_end(std::u32string_view text, std::size_t start) {
    Break before = break_of(text[start]);
    bool pictograph = before == Break::Pictographic;  // then Extend*, perhaps a ZWJ
    bool consonant = find(conjunct_consonants, text[start]) != nullptr, linked = false;
    std::size_t end = start + 1;
    for (; end < text.size(); ++end) {
        const char32_t c = text[end];
        const Break after = break_of(c);
        const bool next_consonant = find(conjunct_consonants, c) != nullptr;
        const bool emoji = pictograph && before == Break::ZWJ && after == Break::Pictographic;
        const bool conjunct = consonant && linked && next_consonant;
        if (!joins(before, after) && !emoji && !conjunct) break;
        const bool extends = after == Break::Extend || after == Break::ZWJ;
        pictograph = after == Break::Pictographic || (pictograph && extends && before != Break::ZWJ);
        linked = extends && (linked || find(conjunct_linkers, c) != nullptr);
        consonant = next_consonant || (consonant && extends);
        if (next_consonant) linked = false;
        before = after;
    }
    return end;
}

std::u32string decode(std::string_view utf8) {
    std::u32string out;
    out.reserve(utf8.size());
    for (std::size_t i = 0; i < utf8.size();) {
        const auto lead = static_cast<unsigned char>(utf8[i]);
        const std::size_t length = lead < 0x80                   ? 1
                                   : lead >= 0xC2 && lead < 0xE0 ? 2
                                   : lead >= 0xE0 && lead < 0xF0 ? 3
                                   : lead >= 0xF0 && lead < 0xF5 ? 4
                                                                 : 0;
        bool good = length != 0 && i + length <= utf8.size();
        char32_t c = length == 1 ? lead : lead & (0x7Fu >> length);
        for (std::size_t k = 1; good && k < length; ++k) {
            const auto next = static_cast<unsigned char>(utf8[i + k]);
            good = (next & 0xC0) == 0x80;
            c = c << 6 | (next & 0x3F);
        }
        good = good && !(length == 3 && c < 0x800) && !(length == 4 && (c < 0x10000 || c > 0x10FFFF)) &&
               !(c >= 0xD800 && c < 0xE000);
        if (!good) throw Error("the prompt is not valid Unicode text");
        out += c;
        i += length;
    }
    return out;
}

void append(std::string& utf8, char32_t c) {
    const auto byte = [&utf8](char32_t value) { utf8 += static_cast<char>(static_cast<unsigned char>(value)); };
    if (c < 0x80) {
        byte(c);
    } else if (c < 0x800) {
        byte(0xC0 | c >> 6);
        byte(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        byte(0xE0 | c >> 12);
        byte(0x80 | (c >> 6 & 0x3F));
        byte(0x80 | (c & 0x3F));
    } else {
        byte(0xF0 | c >> 18);
        byte(0x80 | (c >> 12 & 0x3F));
        byte(0x80 | (c >> 6 & 0x3F));
        byte(0x80 | (c & 0x3F));
    }
}

std::string encode(std::u32string_view text) {
    std::string out;
    out.reserve(text.size());
    for (char32_t c : text) append(out, c);
    return out;
}

}  // namespace kontext::unicode
