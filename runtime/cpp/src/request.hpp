// The request of an edit: arguments checked, defaults filled in, one row for each picture to make.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bundle.hpp"

namespace kontext {

// A picture, and the size to encode it at. Pictures with the same pixels and size have the same index.
struct Reference {
    const Picture* picture;
    Size size;
    std::size_t index;
};

// One picture to make.
struct Row {
    const Edit* edit;
    std::vector<Reference> references;
    std::uint64_t seed;
    Size size;

    // The output's and the references' sizes; rows of one shape run as one batch.
    std::vector<Size> shape() const;
};

struct Request {
    std::vector<Row> rows;
    int steps;
    double guidance;

    // Indices of the rows that run together, ordered by their first row.
    std::vector<std::vector<std::size_t>> batches() const;
};

// Throws Error if one of the arguments is wrong. `edits` must outlive the request.
Request build_request(const SamplerSettings& settings, const std::vector<Edit>& edits, int num_images,
                      const EditOptions& options);

}  // namespace kontext
