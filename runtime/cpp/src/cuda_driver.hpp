// What NVIDIA's driver says of the GPUs here, without linking it.
#pragma once

#include <cstddef>
#include <optional>
#include <string>

namespace kontext {

struct Gpu {
    std::string name;
    int capability;  // compute capability times ten
    std::size_t memory;
};

// The first GPU; creates no context on it. Nothing without a working driver or a GPU.
std::optional<Gpu> find_gpu();

// "NAME, sm_89, 24.0 GiB", or that there is no GPU.
std::string describe(const std::optional<Gpu>& gpu);

}  // namespace kontext
