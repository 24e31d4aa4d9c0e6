// The request of an edit: arguments checked, defaults filled in, one row for each picture to make.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "inpainting.hpp"
#include "references.hpp"
#include "true_cfg.hpp"

namespace kontext {

// One picture to make.
struct Row {
    const Edit* edit;
    std::vector<Reference> references;
    std::uint64_t seed;
    Size size;
    std::optional<Repaint> repaint;

    // Whether the output's size and the references' sizes and places are the same, and both repaint or neither; such
    // rows run as one batch.
    bool same_shape(const Row& other) const;
};

struct Request {
    std::vector<Row> rows;
    int steps;  // of the schedule, from noise to picture
    double guidance;
    int skipped;  // how many of the first steps are left out
    std::optional<TrueCfg> cfg;
    std::vector<std::unique_ptr<const Picture>> canvases;  // of stitched references, and masks

    // Indices of the rows that run together, ordered by their first row.
    std::vector<std::vector<std::size_t>> batches() const;
};

// Calls `options.warning` for pictures that will not look as given. Throws Error if one of the arguments is wrong.
// `edits` and `options` must outlive the request.
Request build_request(const SamplerSettings& settings, const std::vector<Edit>& edits, int num_images,
                      const EditOptions& options);

}  // namespace kontext
