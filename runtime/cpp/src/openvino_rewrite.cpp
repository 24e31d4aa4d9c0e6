#include "openvino_rewrite.hpp"

#include <cmath>
#include <cstring>

#include <openvino/op/constant.hpp>
#include <openvino/op/convert.hpp>

#include "kontext/kontext.hpp"

namespace kontext {
namespace {

using Constant = ov::op::v0::Constant;
using Node = std::shared_ptr<ov::Node>;
using Value = ov::Output<ov::Node>;

constexpr std::size_t small_bytes = 1 << 16;  // up to which a 16-bit constant is copied as fp32

// OpenVINO's mark of a Convert that is not folded into its constant.
constexpr const char* decompression = "decompression_0";

// The values of OpenVINO's NF4, which are those of bitsandbytes (QLoRA, https://arxiv.org/abs/2305.14314).
constexpr float nf4[16] = {-1.0f,         -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f,
                           -0.091050036f, 0.0f,        0.0795803f,   0.1609302f,  0.2461123f,   0.33791524f,
                           0.44070983f,   0.562617f,   0.72295684f,  1.0f};

bool is(const ov::Node* node, const char* type) { return std::strcmp(node->get_type_name(), type) == 0; }
bool is(const Node& node, const char* type) { return is(node.get(), type); }

bool is_half(const ov::element::Type& type) { return type == ov::element::f16 || type == ov::element::bf16; }

Value as_float(const Value& value) { return std::make_shared<ov::op::v0::Convert>(value, ov::element::f32); }

// Connects what uses the output `old` to `made`, but not `made`'s own node.
void replace(const Value& old, const Value& made) {
    for (ov::Input<ov::Node> target : old.get_target_inputs())
        if (target.get_node() != made.get_node()) target.replace_source_output(made);
}

// An output as fp32. Other 16-bit outputs than those of constants become fp32 by themselves.
Value widened(const Value& value) {
    const ov::element::Type& type = value.get_element_type();
    return type == ov::element::f32 || is_half(type) ? value : as_float(value);
}

// Consumers of weights that may be large.
bool multiplies(const ov::Node* node) { return is(node, "MatMul") || is(node, "Convolution") || is(node, "Transpose"); }

// Makes a 16-bit constant fp32: as a copy if it is small or no weight, else by a Convert behind it, which after a
// Gather stands behind that, so that no table is unpacked.
void widen_constant(const std::shared_ptr<Constant>& node) {
    std::shared_ptr<Constant> copy;
    const bool large = node->get_byte_size() > small_bytes;
    for (ov::Input<ov::Node> target : node->output(0).get_target_inputs()) {
        ov::Node* user = target.get_node();
        if (large && is(user, "Gather") && target.get_index() == 0) {
            replace(user->output(0), as_float(user->output(0)));
        } else if (large && multiplies(user)) {
            const Value unpacked = as_float(node);
            unpacked.get_node()->get_rt_info()[decompression] = "";
            target.replace_source_output(unpacked);
        } else {
            if (copy == nullptr) {
                copy = Constant::create(ov::element::f32, node->get_shape(), node->cast_vector<float>());
                copy->set_friendly_name(node->get_friendly_name());
            }
            target.replace_source_output(copy->output(0));
        }
    }
}

// Whether a constant holds both NF4 values of every byte, [256, 2].
bool is_pairs(const Constant& table) {
    if (table.get_shape() != ov::Shape{256, 2}) return false;
    const std::vector<float> values = table.cast_vector<float>();
    for (std::size_t i = 0; i < values.size(); ++i) {
        const float expected = nf4[i % 2 == 0 ? i / 32 : i / 2 % 16];
        if (!(std::fabs(values[i] - expected) <= 1e-6f + 1e-5f * std::fabs(expected))) return false;
    }
    return true;
}

// Replaces a look-up of the two NF4 codes of each byte, with the Reshape behind it, by a constant of OpenVINO's NF4
// type, whose first code of a byte is in the low half.
void pack_nf4(const Node& gather) {
    const auto table = ov::as_type_ptr<Constant>(gather->get_input_node_shared_ptr(0));
    const Node indices = gather->get_input_node_shared_ptr(1);
    if (table == nullptr || !is_pairs(*table) || !is(indices, "Convert")) return;
    const auto codes = ov::as_type_ptr<Constant>(indices->get_input_node_shared_ptr(0));
    const auto users = gather->output(0).get_target_inputs();
    if (codes == nullptr || users.size() != 1 || !is(users.begin()->get_node(), "Reshape")) return;
    const Value unpacked = users.begin()->get_node()->output(0);
    const auto* stored = static_cast<const std::uint8_t*>(codes->get_data_ptr());
    std::vector<std::uint8_t> swapped(codes->get_byte_size());
    for (std::size_t i = 0; i < swapped.size(); ++i)
        swapped[i] = static_cast<std::uint8_t>(stored[i] << 4 | stored[i] >> 4);
    const auto packed = std::make_shared<Constant>(ov::element::nf4, unpacked.get_shape(), swapped.data());
    packed->set_friendly_name(codes->get_friendly_name());
    replace(unpacked, as_float(packed));
}

}  // namespace

void rewrite(const std::shared_ptr<ov::Model>& model) {
    for (const Node& node : model->get_ordered_ops())
        if (is(node, "Gather")) pack_nf4(node);
    for (const Node& node : model->get_ordered_ops()) {
        if (node->get_output_size() == 0) continue;
        const ov::element::Type type = node->get_output_element_type(0);
        if (is(node, "Divide") && type == ov::element::u8)
            throw Error(node->get_friendly_name() +
                        " shifts bytes, which OpenVINO computes wrongly: export the bundle again, or use --device cpu");
        if (!is_half(type)) continue;
        if (const auto constant = ov::as_type_ptr<Constant>(node)) widen_constant(constant);
        else if (is(node, "Convert")) replace(node->output(0), widened(node->input_value(0)));
    }
    model->validate_nodes_and_infer_types();
}

}  // namespace kontext
