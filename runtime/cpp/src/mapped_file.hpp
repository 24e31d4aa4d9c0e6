// A memory-mapped file: bytes are read when they are accessed.
#pragma once

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "bundle.hpp"
#include "regular_file.hpp"

namespace kontext {

class MappedFile {
public:
    explicit MappedFile(const fs::path& path) {
        const RegularFile file(path);
        length = file.size;
        // ONNX Runtime's interface is not const, but it only reads; private pages are safe anyway.
        bytes = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file.descriptor, 0);
        if (bytes == MAP_FAILED) throw Error("cannot read " + path.string() + ": " + std::strerror(errno));
    }
    ~MappedFile() {
        if (bytes != MAP_FAILED) ::munmap(bytes, length);
    }
    MappedFile(MappedFile&& other) noexcept : bytes(std::exchange(other.bytes, MAP_FAILED)), length(other.length) {}
    MappedFile& operator=(MappedFile&&) = delete;

    char* data() const { return static_cast<char*>(bytes); }
    std::size_t size() const { return length; }

private:
    void* bytes = MAP_FAILED;
    std::size_t length = 0;
};

}  // namespace kontext
