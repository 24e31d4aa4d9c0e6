// The parts of Unicode that tokenizers need: character classes, lower case, NFC, grapheme clusters, UTF-8.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace kontext::unicode {

bool is_letter(char32_t c);  // \p{L}
bool is_number(char32_t c);  // \p{N}
bool is_space(char32_t c);   // White_Space

// Lower case by character, as Rust's char::to_lowercase: without the rule for a final sigma.
std::u32string lower_case(std::u32string_view text);

std::u32string nfc(std::u32string_view text);

// The end of the extended grapheme cluster that begins at `start` (UAX #29).
std::size_t grapheme_end(std::u32string_view text, std::size_t start);

// Throws Error if the text is not UTF-8 (surrogates and overlong forms are not).
std::u32string decode(std::string_view utf8);
void append(std::string& utf8, char32_t c);
std::string encode(std::u32string_view text);

}  // namespace kontext::unicode
