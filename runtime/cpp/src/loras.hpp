// LoRAs that an edit brings, as runtime/lora.py: files that `kontext-export lora` has made ready, for bundles exported
// with --lora-slots. Such a file has the rows of the graphs' inputs `lora_down` and `lora_up`, which stand side by side
// for several LoRAs; a LoRA's weight multiplies its `lora_up`.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend.hpp"
#include "bundle.hpp"
#include "kontext/kontext.hpp"

namespace kontext {

// The LoRAs of an edit, as inputs of graphs.
class Loras {
public:
    // Reads the files. Throws Error if the bundle has no slots or too few, or a file is not ready for it.
    Loras(const Bundle& bundle, const std::vector<Lora>& loras);

    // A graph's inputs, which stay in this object; none for a graph without slots. Without LoRAs they have no columns.
    Inputs inputs(const std::string& graph) const;

private:
    std::map<std::string, std::map<std::string, Tensor>> tensors;  // by graph and name
};

// The LoRAs that a pipeline was asked for, of which the latest are kept while their files stay as they are.
class LoraCache {
public:
    explicit LoraCache(const Bundle& bundle) : bundle(bundle) {}

    // Throws Error as the constructor of `Loras`.
    std::shared_ptr<const Loras> find(const std::vector<Lora>& loras);

private:
    struct Version {
        std::string path;
        double weight;
        std::int64_t modified, size;
        bool operator==(const Version& other) const;
    };

    const Bundle& bundle;
    std::vector<Version> versions;
    std::shared_ptr<const Loras> latest;
};

}  // namespace kontext
