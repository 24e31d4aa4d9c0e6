// The command line of kontext-edit-cpp.
#pragma once

#include <string>
#include <vector>

#include "kontext/kontext.hpp"

struct Arguments {
    std::filesystem::path bundle, output;
    std::vector<std::filesystem::path> images;
    std::filesystem::path mask, init_image, preview;  // empty: none
    std::vector<kontext::Lora> loras;
    std::string prompt;
    int num_images = 1;
    kontext::LoadOptions load;
    kontext::EditOptions edit;
    bool quiet = false, devices = false, help = false, version = false;
};

extern const char* const usage;

// Throws kontext::Error with one line for the user.
Arguments parse(const std::vector<std::string>& words);
