// A memory-mapped file: bytes are read when they are accessed.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "bundle.hpp"

namespace kontext {

class MappedFile {
public:
    explicit MappedFile(const fs::path& path) {
        const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
        struct stat status {};
        if (descriptor >= 0 && ::fstat(descriptor, &status) == 0) {
            length = static_cast<std::size_t>(status.st_size);
            // ONNX Runtime's interface is not const, but it only reads; private pages are safe anyway.
            bytes = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, descriptor, 0);
        }
        const int code = errno;
        if (descriptor >= 0) ::close(descriptor);
        if (bytes == MAP_FAILED) throw Error("cannot read " + path.string() + ": " + std::strerror(code));
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
