// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace kontext {

class Sha256 {
public:
    void update(const char* data, std::size_t size);
    std::string hex();  // of all data so far; the object cannot be used afterwards

private:
    void block(const unsigned char* bytes);

    std::array<std::uint32_t, 8> state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                          0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<unsigned char, 64> pending{};
    std::size_t filled = 0;
    std::uint64_t total = 0;
};

std::string sha256(const std::string& data);

}  // namespace kontext
