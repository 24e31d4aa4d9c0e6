#include "sha256.hpp"

#ifdef KONTEXT_WITH_OPENSSL
#include <openssl/evp.h>

#include <new>
#endif

#include <algorithm>

namespace kontext {

#ifdef KONTEXT_WITH_OPENSSL

struct Sha256::State {
    EVP_MD_CTX* context = EVP_MD_CTX_new();
    ~State() { EVP_MD_CTX_free(context); }
};

Sha256::Sha256() : state(std::make_unique<State>()) {
    if (state->context == nullptr || EVP_DigestInit_ex(state->context, EVP_sha256(), nullptr) != 1)
        throw std::bad_alloc();
}

void Sha256::update(const char* data, std::size_t size) { EVP_DigestUpdate(state->context, data, size); }

std::string Sha256::hex() {
    std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
    unsigned int size = 0;
    EVP_DigestFinal_ex(state->context, digest.data(), &size);
    std::string text;
    for (unsigned int i = 0; i < size; ++i)
        text += {"0123456789abcdef"[digest[i] >> 4], "0123456789abcdef"[digest[i] & 15]};
    return text;
}

#else

namespace {

constexpr std::uint32_t constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

std::uint32_t turned(std::uint32_t x, int by) { return x >> by | x << (32 - by); }

}  // namespace

struct Sha256::State {
    std::array<std::uint32_t, 8> words = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                          0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<unsigned char, 64> pending{};
    std::size_t filled = 0;
    std::uint64_t total = 0;

    void block(const unsigned char* bytes);
    void update(const char* data, std::size_t size);
};

void Sha256::State::block(const unsigned char* bytes) {
    std::uint32_t w[64];
    for (int i = 0; i < 16; ++i, bytes += 4)
        w[i] = std::uint32_t{bytes[0]} << 24 | std::uint32_t{bytes[1]} << 16 | std::uint32_t{bytes[2]} << 8 | bytes[3];
    for (int i = 16; i < 64; ++i) {
        const std::uint32_t a = w[i - 15], b = w[i - 2];
        w[i] =
            w[i - 16] + (turned(a, 7) ^ turned(a, 18) ^ a >> 3) + w[i - 7] + (turned(b, 17) ^ turned(b, 19) ^ b >> 10);
    }
    auto [a, b, c, d, e, f, g, h] = words;
    for (int i = 0; i < 64; ++i) {
        const std::uint32_t first =
            h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + constants[i] + w[i];
        const std::uint32_t second = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
    }
    const std::uint32_t added[8] = {a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < 8; ++i) words[i] += added[i];
}

void Sha256::State::update(const char* data, std::size_t size) {
    total += size;
    const auto* bytes = reinterpret_cast<const unsigned char*>(data);
    while (size > 0) {
        if (filled == 0 && size >= 64) {
            block(bytes);
            bytes += 64, size -= 64;
            continue;
        }
        const std::size_t taken = std::min(size, 64 - filled);
        std::copy_n(bytes, taken, pending.begin() + static_cast<std::ptrdiff_t>(filled));
        filled += taken, bytes += taken, size -= taken;
        if (filled == 64) {
            block(pending.data());
            filled = 0;
        }
    }
}

Sha256::Sha256() : state(std::make_unique<State>()) {}

void Sha256::update(const char* data, std::size_t size) { state->update(data, size); }

std::string Sha256::hex() {
    const std::uint64_t bits = state->total * 8;
    std::string end(1, '\x80');
    while ((state->total + end.size()) % 64 != 56) end += '\0';
    for (int shift = 56; shift >= 0; shift -= 8) end += static_cast<char>(bits >> shift & 0xFF);
    state->update(end.data(), end.size());
    std::string text;
    for (std::uint32_t word : state->words)
        for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15];
    return text;
}

#endif

Sha256::~Sha256() = default;

std::string sha256(const std::string& data) {
    Sha256 digest;
    digest.update(data.data(), data.size());
    return digest.hex();
}

}  // namespace kontext
