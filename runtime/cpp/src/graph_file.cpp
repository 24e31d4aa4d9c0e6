#include "graph_file.hpp"

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>

#include "kontext/kontext.hpp"

namespace kontext {
namespace {

using Bytes = std::string_view;

// Those of runtime/graph_file.py, with which a test compares them.
const std::set<Bytes> operators = {
    "Abs", "Add", "ArgMax", "Attention", "BitShift", "Cast", "Clip", "Concat", "Constant", "Conv", "Cos",
    "DequantizeLinear", "Div", "DynamicQuantizeLinear", "Erf", "Exp", "Expand", "Flatten", "Gather", "GatherElements",
    "Gelu", "GroupNormalization", "Identity", "LayerNormalization", "MatMul", "MatMulInteger", "Max", "Min", "Mul",
    "Neg", "Pad", "Pow", "QuantizeLinear", "RMSNormalization", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin",
    "Reshape", "Resize", "RotaryEmbedding", "Round", "Shape", "Sigmoid", "Sin", "Slice", "Softmax", "Split", "Sqrt",
    "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where",
};

using Ranks = std::map<std::string, int>;

// Graph -> its outputs, all float32, and how many dimensions each has.
const std::map<std::string, Ranks> ranks = {
    {"text_encoder", {{"pooled", 2}}},
    {"text_encoder_2", {{"text", 3}}},
    {"vae_encoder", {{"latents", 4}}},
    {"vae_decoder", {{"image", 4}}},
    {"modulation", {{"double_modulation", 5}, {"single_modulation", 4}, {"final_modulation", 3}}},
    {"transformer", {{"velocity", 3}}},
};

constexpr std::uint64_t float32 = 1;  // of onnx.TensorProto.DataType

struct Damaged {
    std::string what;
};

// A field of a message in Protocol Buffers' wire format: a number, or the bytes of a string or of a message in it.
struct Field {
    std::uint64_t number, value;
    Bytes bytes;
    bool is_bytes;

    Bytes message() const {
        if (!is_bytes) throw Damaged{"a number where a message should be"};
        return bytes;
    }
};

// Reads a message field by field. https://protobuf.dev/programming-guides/encoding/
class Reader {
public:
    explicit Reader(Bytes message) : rest(message) {}

    std::optional<Field> next() {
        if (rest.empty()) return std::nullopt;
        const std::uint64_t key = varint(), kind = key & 7;
        if (kind == 0) return Field{key >> 3, varint(), {}, false};
        if (kind != 1 && kind != 2 && kind != 5) throw Damaged{"a field of wire type " + std::to_string(kind)};
        const std::uint64_t size = kind == 1 ? 8 : kind == 5 ? 4 : varint();
        if (size > rest.size()) throw Damaged{"a field is longer than its message"};
        const Bytes bytes = rest.substr(0, size);
        rest.remove_prefix(size);
        return Field{key >> 3, 0, bytes, true};
    }

private:
    std::uint64_t varint() {
        std::uint64_t value = 0;
        for (unsigned i = 0; i < 10 && i < rest.size(); ++i) {
            const auto byte = static_cast<unsigned char>(rest[i]);
            value |= std::uint64_t{byte & 0x7Fu} << 7 * i;
            if (byte < 0x80) {
                rest.remove_prefix(i + 1);
                return value;
            }
        }
        throw Damaged{"a number does not end"};
    }

    Bytes rest;
};

template <typename Visit>
void each(Bytes message, Visit visit) {
    Reader reader(message);
    while (const auto field = reader.next()) visit(*field);
}

std::string shown(Bytes text) {
    std::string result = "'";
    for (char c : text.substr(0, 80)) result += c < 0x20 || c > 0x7E ? '?' : c;
    return result + "'";
}

struct Wrong {
    std::string what;
};

class Check {
public:
    explicit Check(const std::set<std::string>& files) : files(files) {}

    void model(Bytes data, const std::string& name) const {
        std::optional<Bytes> found;
        each(data, [&](const Field& field) {
            if (field.number == 25) throw Wrong{"it has functions"};
            if (field.number != 7) return;
            if (found) throw Wrong{"it has several graphs"};
            found = field.message();
        });
        if (!found) throw Wrong{"it has 0 graphs"};
        graph(*found, ranks.at(name));
    }

private:
    void graph(Bytes data, const Ranks& expected) const {
        Ranks outputs;
        each(data, [&](const Field& field) {
            if (field.number == 1) node(field.message());
            if (field.number == 5) tensor(field.message());
            if (field.number == 12) outputs.insert(output(field.message()));
            if (field.number == 15) throw Wrong{"it has sparse weights"};
        });
        if (outputs == expected) return;
        std::string listed;
        for (const auto& [name, rank] : expected)
            listed += (listed.empty() ? "" : ", ") + name + " of " + std::to_string(rank) + " dimensions";
        throw Wrong{"its outputs are not " + listed + " in float32"};
    }

    void node(Bytes data) const {
        each(data, [&](const Field& field) {
            if (field.number == 4 && operators.count(field.message()) == 0)
                throw Wrong{"it has the operator " + shown(field.bytes)};
            if (field.number == 7 && !field.message().empty() && field.bytes != "ai.onnx")
                throw Wrong{"it has an operator of the domain " + shown(field.bytes)};
            if (field.number == 5) attribute(field.message());
        });
    }

    void attribute(Bytes data) const {
        each(data, [&](const Field& field) {
            if (field.number == 6 || field.number == 11) throw Wrong{"it has a graph inside a node"};
            if (field.number == 5 || field.number == 10) tensor(field.message());
            if (field.number == 22 || field.number == 23) throw Wrong{"it has sparse weights"};
        });
    }

    // Where a tensor has its values.
    void tensor(Bytes data) const {
        each(data, [&](const Field& field) {
            if (field.number != 13) return;
            Bytes key, value;  // of a pair of strings
            each(field.message(), [&](const Field& part) {
                if (part.number == 1) key = part.message();
                if (part.number == 2) value = part.message();
            });
            if (key == "location" && files.count(std::string(value)) == 0)
                throw Wrong{"it takes weights from " + shown(value) + ", which is not among the bundle's files"};
        });
    }

    // An output's name and number of dimensions: -1 if it has no shape, -2 if it is not float32.
    static std::pair<std::string, int> output(Bytes info) {
        std::string name;
        std::uint64_t kind = 0;
        int rank = -1;
        const auto shape = [&](const Field& field) {
            if (field.number == 1) kind = field.value;
            if (field.number != 2) return;
            rank = 0;
            each(field.message(), [&](const Field& part) { rank += part.number == 1; });
        };
        each(info, [&](const Field& field) {
            if (field.number == 1) name = field.message();
            if (field.number != 2) return;
            each(field.message(), [&](const Field& type) {
                if (type.number == 1) each(type.message(), shape);
            });
        });
        return {name, kind == float32 ? rank : -2};
    }

    const std::set<std::string>& files;
};

}  // namespace

void check_graph(std::string_view data, const std::filesystem::path& path, const std::string& graph,
                 const std::set<std::string>& files) {
    const auto refuse = [&path](const std::string& what) {
        throw Error(path.string() + " is not a graph of this format: " + what);
    };
    try {
        Check(files).model(data, graph);
    } catch (const Wrong& wrong) {
        refuse(wrong.what);
    } catch (const Damaged& damaged) {
        refuse("it is damaged (" + damaged.what + ")");
    }
}

}  // namespace kontext
