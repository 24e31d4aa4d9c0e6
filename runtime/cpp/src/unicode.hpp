// What the tokenizers need of Unicode: character classes, lower case, NFC, grapheme clusters, UTF-8.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace kontext::unicode {

bool is_letter(char32_t c);  // \p{L}
bool is_number(char32_t c);  // \p{N}
bool is_space(char32_t c);   // White_Space

// Character by character, as Rust's char::to_lowercase: a final sigma is like any other.
std::u32string lower_case(std::u32string_view text);

std::u32string nfc(std::u32string_view text);

// Where the extended grapheme cluster that begins at `start` ends (UAX #29).
std::size_t grapheme_end(std::u32string_view text, std::size_t start);

// Throws Error where the text is not UTF-8 (surrogates and overlong forms are not).
std::u32string decode(std::string_view utf8);
void append(std::string& utf8, char32_t c);
std::string encode(std::u32string_view text);

}  // namespace kontext::unicode
