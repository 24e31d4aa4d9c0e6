// The parts of Unicode that tokenizers need: character classes, lower case, NFC, grapheme clusters, UTF-8.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace kontext::unicode {

bool is_letter(char32_t c);  // \p{L}
bool is_number(char32_t c);  // \p{N}
bool is_space(char32_t c);   // White_Space

// A character of a rewritten text, and how many characters of the text before it took: 0 for the second and later ones
// of those that one was written out as, 2 and more where several became one.
struct Step {
    char32_t c;
    std::size_t taken;
};
using Steps = std::vector<Step>;

// Lower case by character, as Rust's char::to_lowercase: without the rule for a final sigma.
Steps lower_case(std::u32string_view text);

Steps nfc(std::u32string_view text);

// The end of the extended grapheme cluster that begins at `start` (UAX #29), without the rule for flags: the character
// map treats two regional indicators alike together and apart.
std::size_t grapheme_end(std::u32string_view text, std::size_t start);

// Throws Error if the text is not UTF-8 (surrogates and overlong forms are not).
std::u32string decode(std::string_view utf8);
void append(std::string& utf8, char32_t c);
std::string encode(std::u32string_view text);

}  // namespace kontext::unicode
