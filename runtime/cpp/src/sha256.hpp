// SHA-256 (FIPS 180-4): libcrypto's, which uses the processor's instructions for it, in builds that found it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace kontext {

class Sha256 {
public:
    Sha256();
    ~Sha256();
    void update(const char* data, std::size_t size);
    std::string hex();  // of all data so far; the object cannot be used afterwards

private:
    struct State;
    std::unique_ptr<State> state;
};

std::string sha256(const std::string& data);

}  // namespace kontext
