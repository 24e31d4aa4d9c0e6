// What NVIDIA's driver says of the GPUs here, without linking it.
#pragma once

#include <string>

namespace kontext {

// The first GPU's name, architecture and memory, "NAME, sm_89, 24.0 GiB", or that there is no driver or no GPU.
std::string describe_gpu();

}  // namespace kontext
