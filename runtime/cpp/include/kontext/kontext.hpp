// FLUX.1 Kontext from C++: edits pictures with a bundle that kontext-export wrote, through ONNX Runtime or OpenVINO.
//
//     kontext::Pipeline pipeline("my-bundle");
//     kontext::Picture edited = pipeline.edit({kontext::read_picture("in.png")}, "make the circle red");
//     kontext::write_picture(edited, "out.png");
//
// Errors are thrown as kontext::Error, with one line of text for the user. Link kontext::kontext.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "kontext/kontext.h"

namespace kontext {

class KONTEXT_API Error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

// Thrown by an edit that its progress callback or Pipeline::cancel stopped.
class KONTEXT_API Cancelled : public Error {
public:
    using Error::Error;
};

struct Size {
    int width = 0;
    int height = 0;
    bool operator==(const Size& other) const { return width == other.width && height == other.height; }
    bool operator!=(const Size& other) const { return !(*this == other); }
};

// 8 bits each of red, green, blue; row by row from the top, no padding.
struct Picture {
    Size size;
    std::vector<std::uint8_t> rgb;
};

// Reads a PNG, JPEG or (in builds with libwebp) WebP file as 8-bit RGB, rotated as its EXIF data says, transparency
// over white. It may have 1 GiB, 100 million pixels, sides of 32,768 pixels and, as JPEG, 64 scans. With `reduce`, a JPEG
// file of more than 24 million pixels is decoded at a half to an eighth of its sides: for edits whose references are
// encoded at the model's preferred sizes, of about 1 million.
KONTEXT_API Picture read_picture(const std::filesystem::path& path, bool reduce = false);

// Reads a mask: grey, all three channels alike, of a picture's brightness or, if it has transparency, of its opacity.
// `warning` is called if it looks like a picture with a hole, which other tools repaint and this keeps.
KONTEXT_API Picture read_mask(const std::filesystem::path& path,
                              const std::function<void(const std::string&)>& warning = {});

// Writes a PNG or JPEG file, as its suffix says, which appears whole or not at all.
KONTEXT_API void write_picture(const Picture& picture, const std::filesystem::path& path);

// Throws Error if write_picture would fail because of the path. Call it before the work, not after.
KONTEXT_API void check_writable(const std::filesystem::path& path);

struct LoadOptions {
    // auto, cpu, cuda, openvino, openvino:cpu, openvino:gpu, openvino:npu. "auto": CUDA if the linked ONNX Runtime has
    // it and it starts, else the CPU.
    std::string device = "auto";
    std::string provider;            // a plug-in provider of ONNX Runtime: "LIBRARY[:key=value,…]"
    std::string compute;             // with OpenVINO: fp32, bf16 or fp16; empty: what the bundle says
    int threads = 0;                 // cores that a network may use; 0: all that this process may use
    std::optional<bool> low_memory;  // drop each network after its part of an edit; unset: from 2 GiB of weights on
    bool verify = false;             // compare every file's SHA-256 first; what is executed always is
    std::string require_digest;      // sha256:…, of kontext-export digest: refuse other bundles, compare what is used
    bool allow_links = false;        // take weights from files outside a bundle that you have not exported here

    // Content filters. FLUX.1 [dev]'s licence asks those who deploy it for them; none is built in. The first is called
    // with an edit's references, then its init_image, and the prompt before anything runs, the second with each finished
    // picture, which it returns as it is or changed. Both throw Error to refuse.
    std::function<void(const std::vector<Picture>&, const std::string&)> input_filter;
    std::function<Picture(Picture)> output_filter;
};

// Something that a bundle can run on.
struct DeviceInfo {
    std::string device, provider;  // what LoadOptions takes; one of them is empty
    std::string description;       // for people
};

// What this build finds here; with a plug-in provider ("LIBRARY[:key=value,…]"), its devices too.
KONTEXT_API std::vector<DeviceInfo> list_devices(const std::string& provider = "");

// Passed to the progress callback after each step.
struct Progress {
    int step;  // done, from 1
    int steps;
    const float* latents;                // [pictures, channels, height, width], valid during the call
    std::array<std::size_t, 4> extents;  // pictures of this batch, channels, height, width
};

// A LoRA that `kontext-export lora` has made ready, for bundles exported with --lora-slots.
struct Lora {
    std::filesystem::path path;
    double weight = 1;
};

struct EditOptions {
    std::optional<int> steps;                       // unset: the bundle's default
    std::optional<double> guidance;                 // likewise
    std::uint64_t seed = 0;                         // the noise of torch.Generator("cpu").manual_seed(seed)
    std::optional<Size> size;  // unset: the preferred size nearest to the aspect of init_image or the first reference

    // How several references are placed, and what they are encoded at; docs/commands.md says more.
    std::string reference_method;         // index, offset or stitch; empty: the bundle's
    std::string reference_size = "auto";  // auto, preferred, output or WIDTHxHEIGHT

    // Repainting, and image to image; docs/commands.md says more.
    std::optional<Picture> mask;        // only what is white is repainted; of any size, colours count by brightness
    int mask_blur = 0;                  // radius of a Gaussian blur, in the mask's pixels
    double strength = 1;                // the share of the steps that run; below 1 they begin from the picture
    std::optional<Picture> init_image;  // the picture that is repainted; unset: the first reference
    bool paste_back = false;            // take the picture's own pixels where the blurred mask is black

    // True classifier-free guidance away from a prompt (UTF-8), which may be empty; without one it has no effect.
    std::optional<std::string> negative_prompt;
    double true_cfg = 1;   // its scale, above 1; steps with it are twice the work
    double cfg_until = 1;  // the share of the steps that have it, from the first on

    std::optional<std::vector<Lora>> loras;  // those of this edit; unset: those of Pipeline::load_loras

    std::function<bool(const Progress&)> progress;  // false stops the edit
    // Called if a prompt is truncated, a picture will not look as given, or no GPU could be used.
    std::function<void(const std::string&)> warning;
};

// One prompt of a batch, with its references.
struct Edit {
    std::vector<Picture> references;
    std::string prompt;  // UTF-8
};

// A bundle ready to edit. One edit at a time; networks are loaded when the first edit needs them.
class KONTEXT_API Pipeline {
public:
    explicit Pipeline(const std::filesystem::path& bundle, const LoadOptions& options = {});
    ~Pipeline();
    Pipeline(Pipeline&&) noexcept;
    Pipeline& operator=(Pipeline&&) noexcept;

    // Edits the first reference as the prompt (UTF-8) says, with the others as context; without one, draws from text.
    Picture edit(const std::vector<Picture>& references, std::string_view prompt, const EditOptions& options = {});

    // `num_images` pictures for each of several edits, edit by edit. The first has `options.seed`, each further one the
    // next seed, and each is the picture that its seed gives alone. Rows of one shape are sampled together.
    std::vector<Picture> edit_all(const std::vector<Edit>& edits, int num_images = 1, const EditOptions& options = {});

    // Uses these LoRAs in all further edits that name none, in place of earlier ones. The latest are kept in memory.
    void load_loras(const std::vector<Lora>& loras);

    // What the pictures that are being sampled would become by the last step's direction, in rough colours: a pixel for
    // each latent (FLUX.1's are 8 by 8 pixels), sides `enlarge` times that. Only in an edit's progress callback. Throws
    // Error if the bundle was exported before previews were.
    std::vector<Picture> previews(int enlarge = 1) const;

    // What the device "auto" took, such as "ONNX Runtime on the CPU"; empty if the device was named.
    std::string choice() const;

    // Stops the running edit, from any thread, also in the middle of a step; the edit throws Cancelled.
    void cancel() noexcept;

private:
    struct State;
    std::unique_ptr<State> state;
};

}  // namespace kontext
