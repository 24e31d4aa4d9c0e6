// Checks an ONNX file before a library loads it; runtime/graph_file.py says why.
#pragma once

#include <filesystem>
#include <set>
#include <string>
#include <string_view>

namespace kontext {

constexpr std::size_t max_graph_bytes = 64u << 20;

// Throws Error unless `data`, the bytes of `path`, is the graph `graph` as our exporter could have written it. `files`
// are the names by which it may take weights, relative to its folder.
void check_graph(std::string_view data, const std::filesystem::path& path, const std::string& graph,
                 const std::set<std::string>& files);

}  // namespace kontext
