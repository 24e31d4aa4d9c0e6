#include "arguments.hpp"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>

using kontext::Error;

const char* const usage = R"(usage: kontext-edit-cpp BUNDLE --prompt TEXT -o FILE [-i FILE]...

Edits a picture with a bundle that kontext-export wrote.

  -i, --image FILE     a reference picture, PNG, JPEG or WebP; repeat it for several, leave it out to draw from the prompt
                       alone
  -p, --prompt TEXT    the instruction
  -o, --output FILE    the PNG or JPEG file to write, replaced if it exists
  --steps N            sampler steps (default: the bundle's)
  --guidance X         guidance scale (default: the bundle's)
  --seed N             seed of the noise (default: 0)
  --size WxH           output size in pixels (default: the reference's aspect, at a size the model prefers)
  --reference-method METHOD
                       how several references are placed: one after the other by index, beside each other by offset, or
                       as one picture by stitch (default: the bundle's)
  --reference-size RULE
                       what references are encoded at: output (the output's size), preferred (the model's size nearest to
                       the picture's aspect), WxH, or auto: output where --size has the picture's aspect, else preferred
                       (default: auto)
  --mask FILE          repaint only what is white in this picture, or opaque if it has transparency; its size does not
                       matter
  --mask-blur N        blur the mask by N of its pixels (default: 0)
  --strength SHARE     begin from the picture with noise, and run this share of the steps; 1 begins from noise (default: 1)
  --init-image FILE    the picture that is repainted (default: the first --image)
  --paste-back         take the picture's own pixels outside the blurred mask, not the autoencoder's
  --negative-prompt TEXT
                       what the picture should not be; needs --true-cfg
  --true-cfg SCALE     scale of the guidance away from --negative-prompt, such as 4; its steps are twice the work
                       (default: 1, none)
  --cfg-until SHARE    only guide so in this share of the steps, from the first on (default: 1)
  --lora FILE[:WEIGHT] a LoRA that `kontext-export lora` has made ready, for bundles exported with --lora-slots; repeat it
                       for several (weight: 1)
  --preview FILE       after each step, write what the picture would become there, in rough colours
  --num-images N       pictures to make, with consecutive seeds, as FILE-0, FILE-1, ... (default: 1)
  --device DEVICE      where to run: auto, cpu, cuda, nv-rtx, webgpu, migraphx, openvino, openvino:cpu, openvino:gpu or
                       openvino:npu (default: auto, the fastest that works)
  --provider LIBRARY[:key=value,...]
                       a plug-in provider of ONNX Runtime: its library, with options of its own
  --compute DTYPE      with --device openvino: what the networks compute in: fp32, bf16 or fp16 (default: what the bundle
                       says)
  --devices            show the devices that there are, with --provider those of the plug-in too, and exit
  --threads N          CPU cores to use (default: all that this process may use)
  --verify             compare the bundle's files with their SHA-256 first
  --require-digest sha256:...
                       refuse a bundle with another digest (kontext-export digest BUNDLE prints it), and compare the files
                       that are used with their SHA-256
  --allow-links        take weights from files outside the bundle that it names, although you have not exported it here
  --quiet              no progress, no messages
  --version            show the version and exit
  -h, --help           show this help and exit
)";

namespace {

constexpr double most_weight = 1000;  // of a LoRA; larger ones end in infinities
constexpr int max_images = 1000;  // they are all in memory before the first is written

template <typename Number>
Number number(const std::string& flag, const std::string& text, const char* kind) {
    Number value{};
    const char* end = text.data() + text.size();
    const auto result = std::from_chars(text.data(), end, value);
    if (result.ec != std::errc() || result.ptr != end)
        throw Error(flag + ": invalid " + kind + " value: '" + text.substr(0, 40) + "'");
    return value;
}

std::uint64_t seed(const std::string& text) {
    std::uint64_t value = 0;
    const char* end = text.data() + text.size();
    const auto result = std::from_chars(text.data(), end, value);
    if (result.ec != std::errc() || result.ptr != end)
        throw Error("--seed: a seed is a whole number from 0 to 2^64 - 1, not " + text.substr(0, 40));
    return value;
}

kontext::Size size(const std::string& text) {
    const std::size_t cross = text.find_first_of("xX");
    const auto digits = [](const std::string& part) {
        const std::string number = part.substr(part.compare(0, 1, "-") == 0 ? 1 : 0);
        return !number.empty() && number.size() < 10 && number.find_first_not_of("0123456789") == std::string::npos;
    };
    if (cross == std::string::npos || !digits(text.substr(0, cross)) || !digits(text.substr(cross + 1)))
        throw Error("--size takes WIDTHxHEIGHT, such as 1024x768, not '" + text.substr(0, 40) + "'");
    return {std::stoi(text.substr(0, cross)), std::stoi(text.substr(cross + 1))};
}

int positive(const std::string& flag, const std::string& text) {
    const int value = number<int>(flag, text, "int");
    if (value < 1) throw Error(flag + " must be 1 or more, not " + text);
    return value;
}

int count_of_images(const std::string& flag, const std::string& text) {
    const int value = positive(flag, text);
    if (value > max_images) throw Error(flag + " may be at most " + std::to_string(max_images) + ", not " + text);
    return value;
}

// FILE or FILE:WEIGHT, as lora_flag.py; a file's name may contain colons too.
kontext::Lora lora(const std::string& text) {
    std::size_t colon = text.rfind(':');
    std::string ending = colon == std::string::npos ? "" : text.substr(colon + 1);
    std::transform(ending.begin(), ending.end(), ending.begin(), [](unsigned char c) { return std::tolower(c); });
    for (const std::string file : {".safetensors", ".bin", ".pt", ".pth", ".ckpt"})
        if (ending.size() >= file.size() && ending.compare(ending.size() - file.size(), file.size(), file) == 0)
            colon = std::string::npos;
    if (std::error_code code; std::filesystem::exists(text, code)) colon = std::string::npos;
    kontext::Lora result{text.substr(0, colon)};
    double& weight = result.weight;
    const std::string number = colon == std::string::npos ? "1" : text.substr(colon + 1);
    const char* end = number.data() + number.size();
    const auto read = std::from_chars(number.data(), end, weight);
    constexpr const char* form = "write FILE or FILE:WEIGHT, as in style.safetensors:0.8";
    if (result.path.empty()) throw Error("--lora '" + text.substr(0, 80) + "' names no file: " + form);
    const bool is_number = read.ec == std::errc() && read.ptr == end && std::isfinite(weight);
    const std::string where = "--lora " + text.substr(0, 400) + ": ";
    if (!is_number) throw Error(where + "'" + number.substr(0, 80) + "' is not a weight: " + form);
    if (std::abs(weight) > most_weight)
        throw Error(where + "a weight is a number from -1000 to 1000");
    return result;
}

// Stores the value of a flag. Returns false if the flag is not known.
bool take(Arguments& into, const std::string& flag, const std::string& value) {
    if (flag == "-i" || flag == "--image") into.images.emplace_back(value);
    else if (flag == "-p" || flag == "--prompt") into.prompt = value;
    else if (flag == "-o" || flag == "--output") into.output = value;
    else if (flag == "--steps") into.edit.steps = positive(flag, value);
    else if (flag == "--guidance") into.edit.guidance = number<double>(flag, value, "float");
    else if (flag == "--seed") into.edit.seed = seed(value);
    else if (flag == "--size") into.edit.size = size(value);
    else if (flag == "--reference-method") into.edit.reference_method = value;
    else if (flag == "--reference-size") into.edit.reference_size = value;
    else if (flag == "--mask") into.mask = value;
    else if (flag == "--mask-blur") into.edit.mask_blur = number<int>(flag, value, "int");
    else if (flag == "--strength") into.edit.strength = number<double>(flag, value, "float");
    else if (flag == "--init-image") into.init_image = value;
    else if (flag == "--negative-prompt") into.edit.negative_prompt = value;
    else if (flag == "--true-cfg") into.edit.true_cfg = number<double>(flag, value, "float");
    else if (flag == "--cfg-until") into.edit.cfg_until = number<double>(flag, value, "float");
    else if (flag == "--lora") into.loras.push_back(lora(value));
    else if (flag == "--preview") into.preview = value;
    else if (flag == "--num-images") into.num_images = count_of_images(flag, value);
    else if (flag == "--device") into.load.device = value;
    else if (flag == "--provider") into.load.provider = value;
    else if (flag == "--compute") into.load.compute = value;
    else if (flag == "--require-digest") into.load.require_digest = value;
    else if (flag == "--threads") into.load.threads = positive(flag, value);
    else return false;
    return true;
}

}  // namespace

Arguments parse(const std::vector<std::string>& words) {
    constexpr const char* advice = " (kontext-edit-cpp --help shows the flags)";
    const std::string with_values =
        " -i --image -p --prompt -o --output --steps --guidance --seed --size --reference-method --reference-size "
        "--mask --mask-blur --strength --init-image --negative-prompt --true-cfg --cfg-until "
        "--lora --preview --num-images --device --provider --compute --threads --require-digest ";
    Arguments result;
    result.load.low_memory = true;  // one edit uses each network in one part only
    bool has_prompt = false;
    for (std::size_t i = 0; i < words.size(); ++i) {
        std::string flag = words[i];
        if (flag == "-h" || flag == "--help") result.help = true;
        else if (flag == "--version") result.version = true;
        else if (flag == "--devices") result.devices = true;
        else if (flag == "--quiet") result.quiet = true;
        else if (flag == "--paste-back") result.edit.paste_back = true;
        else if (flag == "--verify") result.load.verify = true;
        else if (flag == "--allow-links") result.load.allow_links = true;
        else if (flag.size() > 1 && flag[0] == '-') {
            std::optional<std::string> value;
            if (const std::size_t equals = flag.find('='); flag[1] == '-' && equals != std::string::npos) {
                value = flag.substr(equals + 1);
                flag.resize(equals);
            }
            if (with_values.find(" " + flag + " ") == std::string::npos)
                throw Error("unrecognized arguments: " + words[i] + advice);
            if (!value && ++i == words.size()) throw Error("argument " + flag + ": expected one argument" + advice);
            take(result, flag, value ? *value : words[i]);
            has_prompt = has_prompt || flag == "-p" || flag == "--prompt";
        } else if (result.bundle.empty()) {
            result.bundle = flag;
        } else {
            throw Error("unrecognized arguments: " + flag + advice);
        }
    }
    if (result.help || result.version || result.devices) return result;
    for (const auto& [missing, name] : {std::pair{result.bundle.empty(), "BUNDLE"},
                                        {!has_prompt, "-p/--prompt"},
                                        {result.output.empty(), "-o/--output"}})
        if (missing) throw Error(std::string("the following arguments are required: ") + name + advice);
    return result;
}
