// An edit from end to end: encode text and references, compute all modulations, integrate, decode.
#include <algorithm>
#include <cmath>

#include "bundle.hpp"
#include "kontext/kontext.hpp"
#include "resize.hpp"
#include "sampling.hpp"
#include "sessions.hpp"
#include "tokenizer.hpp"

namespace kontext {
namespace {

constexpr std::uint64_t large_weights = std::uint64_t{2} << 30;
constexpr std::int64_t max_areas = 16;  // an output of more times the largest preferred size is taken for a typo

std::int64_t area(Size size) { return std::int64_t{size.width} * size.height; }

std::string text_of(Size size) { return std::to_string(size.width) + "x" + std::to_string(size.height); }

Size checked(Size size, const SamplerSettings& settings) {
    const int multiple = settings.size_multiple;
    for (int side : {size.width, size.height})
        if (side < multiple || side % multiple != 0)
            throw Error("size " + text_of(size) + ": both sides must be multiples of " + std::to_string(multiple));
    std::int64_t largest = 0;
    for (Size each : settings.preferred_sizes) largest = std::max(largest, area(each));
    if (area(size) > max_areas * largest)
        throw Error("size " + text_of(size) + " is more than " + std::to_string(max_areas) +
                    " times as large as this model's pictures (" + std::to_string(largest) + " pixels)");
    return size;
}

Size most_square(const std::vector<Size>& sizes) {
    return *std::min_element(sizes.begin(), sizes.end(), [](Size a, Size b) {
        return std::abs(a.width - a.height) < std::abs(b.width - b.height);
    });
}

// An output of a graph, checked to have this shape (-1 is any size) and to be finite: later graphs and to_picture hide
// NaN.
Tensor take(Outputs outputs, const std::string& graph, const char* name, const std::vector<std::int64_t>& shape) {
    const auto found = outputs.find(name);
    bool good = found != outputs.end() && found->second.shape.size() == shape.size();
    for (std::size_t i = 0; good && i < shape.size(); ++i) good = shape[i] < 0 || shape[i] == found->second.shape[i];
    if (!good)
        throw Error(graph + " is not a graph of this format: its output " + name + " is missing or has another shape");
    const Floats& values = found->second.data;
    if (!std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); }))
        throw Error("the output of " + graph +
                    " is not finite: its weights are damaged, or its number format is too narrow");
    return std::move(found->second);
}

// The arguments of an edit with defaults filled in.
struct Request {
    int steps;
    double guidance;
    Size size;
    std::vector<Size> reference_sizes;
};

Request build(const SamplerSettings& settings, const std::vector<Picture>& references, const EditOptions& options) {
    Request request{options.steps.value_or(settings.steps), options.guidance.value_or(settings.guidance), {}, {}};
    if (request.steps < 1)
        throw Error("steps must be a whole number of 1 or more, not " + std::to_string(request.steps));
    if (!std::isfinite(request.guidance)) throw Error("guidance must be a finite number");
    for (const Picture& picture : references) {
        const auto [width, height] = picture.size;
        if (width < 1 || height < 1 || picture.rgb.size() != 3 * static_cast<std::uint64_t>(area(picture.size)))
            throw Error("a picture of " + text_of(picture.size) + " must have that many pixels of 3 bytes");
        if (static_cast<std::uint64_t>(area(picture.size)) > max_pixels) throw too_large("the picture");
        request.reference_sizes.push_back(preferred_size(picture.size, settings.preferred_sizes));
    }
    if (options.size) {
        request.size = checked(*options.size, settings);
    } else {
        request.size = references.empty() ? most_square(settings.preferred_sizes) : request.reference_sizes[0];
    }
    return request;
}

}  // namespace

struct Pipeline::State {
    Bundle bundle;
    bool low_memory;
    Tokenizer clip, t5;
    Sessions sessions;

    State(const fs::path& folder, const LoadOptions& options)
        : bundle(opened(folder, options.verify)),
          low_memory(options.low_memory.value_or(bundle.weight_bytes() >= large_weights)),
          clip(bundle.tokenizers.at("clip").path),
          t5(bundle.tokenizers.at("t5").path),
          sessions(bundle, options.threads) {}

    static Bundle opened(const fs::path& folder, bool verify) {
        Bundle bundle = Bundle::open(folder);
        if (!bundle.missing_kernels.empty()) throw Error(bundle.missing_kernels);
        if (verify) bundle.verify();
        return bundle;
    }

    // Runs a graph that the edit does not need again.
    Outputs last(const std::string& graph, const Inputs& inputs) {
        Outputs outputs = sessions.run(graph, inputs);
        if (low_memory) sessions.release(graph);
        return outputs;
    }

    static Ids tokenize(const Tokenizer& tokenizer, const TokenizerEntry& entry, const char* encoder,
                        std::string_view prompt, const EditOptions& options) {
        std::size_t lost = 0;
        Ids ids = tokenizer.encode(prompt, entry.max_length, lost);
        ids.resize(std::max(ids.size(), entry.max_length), entry.pad_id);
        if (lost > 0 && options.warning)
            options.warning("the prompt is longer than " + std::string(encoder) + "'s " +
                            std::to_string(entry.max_length) + " tokens: its last " + std::to_string(lost) +
                            " tokens are ignored there");
        return ids;
    }

    Grid grid(Size size) const { return {size.height / (2 * bundle.downscale), size.width / (2 * bundle.downscale)}; }

    // Tokens [tokens, in_channels] of all references.
    Floats encode(const std::vector<Picture>& references, const std::vector<Size>& sizes) {
        Floats tokens;
        for (std::size_t i = 0; i < references.size(); ++i) {
            const auto [rows, columns] = grid(sizes[i]);
            const Floats image = to_array(references[i], sizes[i]);
            Inputs inputs;
            inputs.add("image", view(image, {1, 3, sizes[i].height, sizes[i].width}));
            const Tensor latents = take(sessions.run("vae_encoder", inputs), "vae_encoder", "latents",
                                        {1, bundle.latent_channels, 2 * rows, 2 * columns});
            const Floats packed = pack(latents.data, bundle.latent_channels, {rows, columns});
            tokens.insert(tokens.end(), packed.begin(), packed.end());
        }
        if (low_memory) sessions.release("vae_encoder");
        return tokens;
    }

    // The modulations of all steps in one batch, [steps, …] each.
    Outputs modulations(const Floats& times, const Request& request, const Tensor& pooled) {
        const auto steps = static_cast<std::size_t>(request.steps);
        Floats timesteps, guidance(steps, static_cast<float>(request.guidance)), rows;
        for (std::size_t i = 0; i < steps; ++i) {
            timesteps.push_back(times[i] * 1000.0f / 1000.0f);  // as diffusers does, in float32
            rows.insert(rows.end(), pooled.data.begin(), pooled.data.end());
        }
        Inputs inputs;
        inputs.add("timestep", view(timesteps, {request.steps}));
        inputs.add("guidance", view(guidance, {request.steps}));
        inputs.add("pooled", view(rows, {request.steps, bundle.pooled_dim}));
        Outputs outputs = last("modulation", inputs);
        for (const auto& [name, value] : outputs)
            if (value.shape.empty() || value.shape[0] != request.steps)
                throw Error("modulation is not a graph of this format: its output " + name + " has another shape");
        return outputs;
    }

    Picture edit(const std::vector<Picture>& pictures, std::string_view prompt, const EditOptions& options) {
        const Request request = build(bundle.sampler, pictures, options);
        const Ids clip_ids = tokenize(clip, bundle.tokenizers.at("clip"), "CLIP", prompt, options);
        const Ids t5_ids = tokenize(t5, bundle.tokenizers.at("t5"), "T5", prompt, options);
        Inputs inputs;
        inputs.add("input_ids", view(clip_ids));
        const Tensor pooled = take(last("text_encoder", inputs), "text_encoder", "pooled", {1, bundle.pooled_dim});
        inputs = {};
        inputs.add("input_ids", view(t5_ids));
        const Tensor text = take(last("text_encoder_2", inputs), "text_encoder_2", "text", {1, -1, bundle.text_dim});
        const Floats reference = encode(pictures, request.reference_sizes);
        const Floats target = sample(request, pooled, text, reference, options);
        const Grid shape = grid(request.size);
        const Floats latents = unpack(target, bundle.latent_channels, shape);
        inputs = {};
        inputs.add("latents", view(latents, {1, bundle.latent_channels, 2 * shape.rows, 2 * shape.columns}));
        const Tensor image =
            take(last("vae_decoder", inputs), "vae_decoder", "image", {1, 3, request.size.height, request.size.width});
        return to_picture(image.data, request.size);
    }

    // Tokens [target_tokens, in_channels] after the last step: Euler on the rectified flow, x += (t_next - t) * v.
    Floats sample(const Request& request, const Tensor& pooled, const Tensor& text, const Floats& reference,
                  const EditOptions& options) {
        const Grid shape = grid(request.size);
        const std::int64_t channels = bundle.in_channels, text_tokens = text.shape[1];
        const std::int64_t tokens = std::int64_t{shape.rows} * shape.columns;
        Floats target =
            pack(randn(options.seed, static_cast<std::size_t>(tokens * channels)), bundle.latent_channels, shape);
        const Floats times = schedule(request.steps, static_cast<int>(tokens), bundle.sampler);
        const Outputs modulations = this->modulations(times, request, pooled);
        std::vector<Grid> grids = {shape};
        for (Size size : request.reference_sizes) grids.push_back(grid(size));
        const auto [cos, sin] = rope_tables(static_cast<int>(text_tokens), grids, bundle);
        const std::int64_t half = bundle.head_dim / 2, sequence = static_cast<std::int64_t>(cos.size()) / half;
        for (std::size_t step = 0; step + 1 < times.size(); ++step) {
            Inputs inputs;
            inputs.add("target", view(target, {1, tokens, channels}));
            inputs.add("reference",
                       view(reference, {1, static_cast<std::int64_t>(reference.size()) / channels, channels}));
            inputs.add("text", view(text.data, text.shape));
            inputs.add("rope_cos", view(cos, {sequence, half}));
            inputs.add("rope_sin", view(sin, {sequence, half}));
            for (const auto& [name, value] : modulations) {
                std::vector<std::int64_t> row = value.shape;
                row[0] = 1;
                inputs.add(name.c_str(),
                           view(value.data.data() + step * (value.data.size() / (times.size() - 1)), row));
            }
            const Tensor velocity =
                take(sessions.run("transformer", inputs), "transformer", "velocity", {1, tokens, channels});
            const float interval = times[step + 1] - times[step];
            for (std::size_t i = 0; i < target.size(); ++i) target[i] += interval * velocity.data[i];
            tell(options, static_cast<int>(step) + 1, request.steps, target, shape);
        }
        if (low_memory) sessions.release("transformer");
        return target;
    }

    void tell(const EditOptions& options, int step, int steps, const Floats& target, Grid shape) {
        sessions.check_stopped();
        if (!options.progress) return;
        const Floats latents = unpack(target, bundle.latent_channels, shape);
        const auto extent = [](int value) { return static_cast<std::size_t>(value); };
        const Progress progress{step,
                                steps,
                                latents.data(),
                                {extent(bundle.latent_channels), extent(2 * shape.rows), extent(2 * shape.columns)}};
        if (!options.progress(progress)) throw Cancelled("the edit was cancelled");
    }
};

Pipeline::Pipeline(const fs::path& bundle, const LoadOptions& options)
    : state(std::make_unique<State>(bundle, options)) {}
Pipeline::~Pipeline() = default;
Pipeline::Pipeline(Pipeline&&) noexcept = default;
Pipeline& Pipeline::operator=(Pipeline&&) noexcept = default;

Picture Pipeline::edit(const std::vector<Picture>& references, std::string_view prompt, const EditOptions& options) {
    state->sessions.reset();
    return state->edit(references, prompt, options);
}

void Pipeline::cancel() noexcept { state->sessions.stop(); }

}  // namespace kontext
