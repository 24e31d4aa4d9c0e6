// An edit from end to end: encode text and references, compute all modulations, integrate, decode.
#include <algorithm>
#include <cmath>
#include <utility>

#include "backend.hpp"
#include "bundle.hpp"
#include "devices.hpp"
#include "inpainting.hpp"
#include "kontext/kontext.hpp"
#include "loras.hpp"
#include "masks.hpp"
#include "preview.hpp"
#include "regular_file.hpp"
#include "request.hpp"
#include "resize.hpp"
#include "sampling.hpp"
#include "tokenizer.hpp"

namespace kontext {
namespace {

constexpr std::uint64_t large_weights = std::uint64_t{2} << 30;
constexpr int max_enlarge = 16;

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

// Appends part `index` of `count` equal parts.
void append_part(Floats& to, const Floats& from, std::size_t index, std::size_t count) {
    const std::size_t size = from.size() / count;
    const auto start = from.begin() + static_cast<std::ptrdiff_t>(index * size);
    to.insert(to.end(), start, start + static_cast<std::ptrdiff_t>(size));
}

std::int64_t extent(std::size_t size) { return static_cast<std::int64_t>(size); }

// The prompts of rows, each once, and each row's among them.
struct Prompts {
    std::vector<std::string> texts;
    std::vector<std::size_t> of_row;

    void add(const std::string& text) {
        const auto found = std::find(texts.begin(), texts.end(), text);
        of_row.push_back(static_cast<std::size_t>(found - texts.begin()));
        if (found == texts.end()) texts.push_back(text);
    }
};

// What an edit computes before the first step, [prompts, …] each, and tokens by the index of what is encoded.
struct Conditions {
    Prompts prompts;
    Tensor pooled, text;
    std::map<std::size_t, Floats> references;
};

}  // namespace

struct Pipeline::State {
    Bundle bundle;
    LoadOptions options;
    bool low_memory;
    Tokenizer clip, t5;
    Opened opened;
    Backend* backend;
    LoraCache lora_cache;
    std::shared_ptr<const Loras> loras;  // of edits that name none
    std::function<Tensor()> estimate;    // latents that the last step's direction leads to; empty but in a callback

    State(const fs::path& folder, const LoadOptions& options)
        : bundle(Bundle::open(folder, options.require_digest, options.allow_links)),
          options(options),
          // A plan for a memory budget assumes that each network is dropped.
          low_memory(options.low_memory.value_or(bundle.weight_bytes() >= large_weights || bundle.planned)),
          clip(tokenizer("clip")),
          t5(tokenizer("t5")),
          opened(open_backend(bundle, options, low_memory)),
          backend(opened.backend.get()),
          lora_cache(bundle),
          loras(lora_cache.find({})) {
        if (options.verify || !options.require_digest.empty()) bundle.verify(options.verify);
        for (const auto& [name, tokenizer] : {std::pair{"clip", &clip}, std::pair{"t5", &t5}}) {
            const TokenizerEntry& entry = bundle.tokenizers.at(name);
            if (tokenizer->special() >= entry.max_length)
                throw Error(entry.path.string() + ": its " + std::to_string(tokenizer->special()) +
                            " special tokens leave no room in prompts of " + std::to_string(entry.max_length));
        }
    }

    Tokenizer tokenizer(const char* name) const {
        const fs::path& path = bundle.tokenizers.at(name).path;
        return {bundle.content(path, max_json_bytes, "a tokenizer"), path};
    }

    // Runs a graph that the edit does not need again.
    Outputs last(const std::string& graph, Inputs inputs, const Loras& used) {
        inputs.merge(used.inputs(graph));
        Outputs outputs = backend->run(graph, inputs);
        if (low_memory) backend->release(graph);
        return outputs;
    }

    // The ids [texts, max_length] of texts.
    static Ids tokenize(const Tokenizer& tokenizer, const TokenizerEntry& entry, const char* encoder,
                        const std::vector<std::string>& texts, const EditOptions& options) {
        Ids all;
        for (const std::string& text : texts) {
            std::size_t lost = 0;
            Ids ids = tokenizer.encode(text, entry.max_length, lost);
            ids.resize(std::max(ids.size(), entry.max_length), entry.pad_id);
            all.insert(all.end(), ids.begin(), ids.end());
            if (lost > 0 && options.warning)
                options.warning("the prompt is longer than " + std::string(encoder) + "'s " +
                                std::to_string(entry.max_length) + " tokens: its last " + std::to_string(lost) +
                                " tokens are ignored there");
        }
        return all;
    }

    Grid grid(Size size) const { return {size.height / (2 * bundle.downscale), size.width / (2 * bundle.downscale)}; }

    std::vector<Picture> edit(const std::vector<Edit>& edits, int num_images, const EditOptions& chosen) {
        backend->reset();
        backend->warning = chosen.warning;
        if (!opened.warning.empty() && chosen.warning) chosen.warning(std::exchange(opened.warning, ""));
        const Request request = build_request(bundle.sampler, edits, num_images, chosen);
        const std::shared_ptr<const Loras> used = chosen.loras ? lora_cache.find(*chosen.loras) : loras;
        warn_of_masks(request, chosen);
        if (options.input_filter)
            for (const Edit& each : edits) options.input_filter(seen(each, chosen), each.prompt);
        const auto batches = request.batches();
        const Conditions conditions = encode(request, chosen, *used);
        std::vector<Picture> pictures(request.rows.size());
        for (std::size_t number = 0; number < batches.size(); ++number) {
            std::vector<Row> rows;
            for (std::size_t index : batches[number]) rows.push_back(request.rows[index]);
            const Tensor latents = sample(rows, request, conditions, chosen, *used, number, batches.size());
            for (std::size_t i = 0; i < rows.size(); ++i) {
                Picture& picture = pictures[batches[number][i]] = decode(latents, i, rows[i].size);
                if (rows[i].repaint) picture = pasted(*rows[i].repaint, std::move(picture));
            }
            if (low_memory) backend->release("vae_decoder");
        }
        if (options.output_filter)
            for (Picture& picture : pictures) picture = options.output_filter(std::move(picture));
        return pictures;
    }

    void warn_of_masks(const Request& request, const EditOptions& chosen) const {
        std::vector<std::string> notes;
        for (const Row& row : request.rows) {
            if (!chosen.warning || !row.repaint || row.repaint->mask == nullptr) continue;
            const std::string note = note_of(*row.repaint->mask, bundle.downscale);
            if (note.empty() || std::find(notes.begin(), notes.end(), note) != notes.end()) continue;
            notes.push_back(note);
            chosen.warning(note);
        }
    }

    // Every picture that an edit is made from: its references, then an init_image.
    static std::vector<Picture> seen(const Edit& edit, const EditOptions& chosen) {
        std::vector<Picture> pictures = edit.references;
        if (chosen.init_image) pictures.push_back(*chosen.init_image);
        return pictures;
    }

    Conditions encode(const Request& request, const EditOptions& chosen, const Loras& used) {
        Conditions result;
        for (const Row& row : request.rows) {
            result.prompts.add(row.edit->prompt);
            if (request.cfg) result.prompts.add(*chosen.negative_prompt);
        }
        const std::vector<std::string>& texts = result.prompts.texts;
        const TokenizerEntry &clip_entry = bundle.tokenizers.at("clip"), &t5_entry = bundle.tokenizers.at("t5");
        const Ids clip_ids = tokenize(clip, clip_entry, "CLIP", texts, chosen);
        const Ids t5_ids = tokenize(t5, t5_entry, "T5", texts, chosen);
        const std::int64_t count = extent(texts.size());
        result.pooled =
            take(last("text_encoder", {{"input_ids", view(clip_ids, {count, extent(clip_entry.max_length)})}}, used),
                 "text_encoder", "pooled", {count, bundle.pooled_dim});
        result.text =
            take(last("text_encoder_2", {{"input_ids", view(t5_ids, {count, extent(t5_entry.max_length)})}}, used),
                 "text_encoder_2", "text", {count, -1, bundle.text_dim});
        for (const Row& row : request.rows) {
            std::vector<Reference> encoded = row.references;
            if (row.repaint) encoded.push_back(row.repaint->original);
            for (const Reference& reference : encoded)
                if (result.references.count(reference.index) == 0)
                    result.references[reference.index] = encode(*reference.picture, reference.size);
        }
        if (low_memory) backend->release("vae_encoder");
        return result;
    }

    // Tokens [tokens, in_channels] of a reference.
    Floats encode(const Picture& picture, Size size) {
        const auto [rows, columns] = grid(size);
        const Floats image = to_array(picture, size);
        const Tensor latents =
            take(backend->run("vae_encoder", {{"image", view(image, {1, 3, size.height, size.width})}}), "vae_encoder",
                 "latents", {1, bundle.latent_channels, 2 * rows, 2 * columns});
        return pack(latents.data, bundle.latent_channels, {rows, columns});
    }

    // The modulations of all steps of `prompts`, in one batch: [steps * prompts, …] each.
    Outputs modulations(const Floats& times, double strength, const Floats& pooled, std::size_t prompts,
                        const Loras& used) {
        const std::size_t steps = times.size() - 1, count = steps * prompts;
        Floats timesteps, guidance(count, static_cast<float>(strength)), rows;
        for (std::size_t i = 0; i < steps; ++i) {
            timesteps.insert(timesteps.end(), prompts, times[i] * 1000.0f / 1000.0f);  // as diffusers does, in float32
            rows.insert(rows.end(), pooled.begin(), pooled.end());
        }
        Outputs outputs = last("modulation", {{"timestep", view(timesteps, {extent(count)})},
                                              {"guidance", view(guidance, {extent(count)})},
                                              {"pooled", view(rows, {extent(count), bundle.pooled_dim})}},
                               used);
        for (const auto& [name, value] : outputs)
            if (value.shape.empty() || value.shape[0] != extent(count))
                throw Error("modulation is not a graph of this format: its output " + name + " has another shape");
        return outputs;
    }

    // Latents [rows, channels, height, width] of rows of one shape after the last step: Euler on the rectified flow,
    // x += (t_next - t) * v. They are batch `number` of `batches`. The first steps of true CFG run all rows a second time,
    // with the negative prompt.
    Tensor sample(const std::vector<Row>& rows, const Request& request, const Conditions& conditions,
                  const EditOptions& chosen, const Loras& used, std::size_t number, std::size_t batches) {
        const Grid shape = grid(rows[0].size);
        const std::size_t count = rows.size(), steps = static_cast<std::size_t>(request.steps - request.skipped);
        const std::size_t guided = request.cfg ? static_cast<std::size_t>(request.cfg->guided(int(steps))) : 0;
        const std::int64_t channels = bundle.in_channels, tokens = std::int64_t{shape.rows} * shape.columns;
        Prompts prompts;
        Floats target, reference, text, pooled;
        const auto add_prompt = [&](const std::string& prompt) {
            const std::vector<std::string>& known = conditions.prompts.texts;
            const auto index = static_cast<std::size_t>(std::find(known.begin(), known.end(), prompt) - known.begin());
            append_part(text, conditions.text.data, index, known.size());
            const std::size_t different = prompts.texts.size();
            prompts.add(prompt);
            if (prompts.texts.size() > different) append_part(pooled, conditions.pooled.data, index, known.size());
        };
        Repainting repainting;
        for (const Row& row : rows) {
            const Floats noise =
                pack(randn(row.seed, static_cast<std::size_t>(tokens * channels)), bundle.latent_channels, shape);
            target.insert(target.end(), noise.begin(), noise.end());
            if (row.repaint)
                repainting.add(*row.repaint, conditions.references.at(row.repaint->original.index), noise,
                               bundle.latent_channels, shape, bundle.downscale);
            for (const Reference& each : row.references) {
                const Floats& part = conditions.references.at(each.index);
                reference.insert(reference.end(), part.begin(), part.end());
            }
            add_prompt(row.edit->prompt);
        }
        const std::int64_t reference_tokens = extent(reference.size()) / channels / extent(count);
        if (guided > 0) {
            for (std::size_t i = 0; i < count; ++i) add_prompt(*chosen.negative_prompt);
            reference.resize(2 * reference.size());
            std::copy_n(reference.begin(), reference.size() / 2, reference.begin() + extent(reference.size() / 2));
        }
        Floats times = schedule(request.steps, static_cast<int>(tokens), bundle.sampler);
        times.erase(times.begin(), times.begin() + request.skipped);
        if (rows[0].repaint) target = repainting.noised(times[0]);
        const Outputs modulations = this->modulations(times, request.guidance, pooled, prompts.texts.size(), used);
        std::vector<PlacedGrid> grids = {{shape, 0, 0, 0}};
        for (const Reference& each : rows[0].references) {
            const int side = 2 * bundle.downscale;  // of a token, in pixels
            grids.push_back({grid(each.size), each.place.image, each.place.top / side, each.place.left / side});
        }
        const std::int64_t text_tokens = conditions.text.shape[1], half = bundle.head_dim / 2;
        const auto [cos, sin] = rope_tables(static_cast<int>(text_tokens), grids, bundle);
        const std::int64_t sequence = extent(cos.size()) / half;
        const std::size_t parts = steps * prompts.texts.size();
        Inputs shared, held_loras = used.inputs("transformer");
        backend->hold(held_loras);
        for (std::size_t step = 0; step < steps; ++step) {
            const std::size_t batch = step < guided ? 2 * count : count;
            if (step == 0 || step == guided) {
                shared = {{"reference", view(reference, {extent(batch), reference_tokens, channels})},
                          {"text", view(text, {extent(batch), text_tokens, bundle.text_dim})},
                          {"rope_cos", view(cos, {sequence, half})},
                          {"rope_sin", view(sin, {sequence, half})}};
                backend->hold(shared);
            }
            const Floats start = target;
            Floats twice;  // for the prompt and the negative one
            if (step < guided) {
                twice = start;
                twice.insert(twice.end(), start.begin(), start.end());
            }
            Inputs inputs = shared;
            inputs.insert(held_loras.begin(), held_loras.end());
            inputs["target"] = view(step < guided ? twice : start, {extent(batch), tokens, channels});
            std::map<std::string, Floats> chunks;
            for (const auto& [name, value] : modulations) {
                Floats& chunk = chunks[name];
                for (std::size_t row = 0; row < batch; ++row)
                    append_part(chunk, value.data, step * prompts.texts.size() + prompts.of_row[row], parts);
                std::vector<std::int64_t> extents = value.shape;
                extents[0] = extent(batch);
                inputs[name] = view(chunk, extents);
            }
            Floats velocity = take(backend->run("transformer", inputs), "transformer", "velocity",
                                   {extent(batch), tokens, channels})
                                  .data;
            if (step < guided) velocity = request.cfg->combine(velocity);
            const float interval = times[step + 1] - times[step];
            for (std::size_t i = 0; i < target.size(); ++i) target[i] += interval * velocity[i];
            if (rows[0].repaint) repainting.keep(times[step + 1], target);
            backend->check_stopped();
            if (!chosen.progress) continue;
            const auto destination = [&] {
                Floats end(start.size());
                for (std::size_t i = 0; i < end.size(); ++i) end[i] = start[i] - times[step] * velocity[i];
                if (rows[0].repaint) repainting.keep(0, end);
                return unpacked(end, count, shape);
            };
            tell(chosen, number * steps + step + 1, batches * steps, unpacked(target, count, shape), destination);
        }
        if (low_memory) backend->release("transformer");
        return unpacked(target, count, shape);
    }

    // Latents of tokens [count, tokens, channels].
    Tensor unpacked(const Floats& tokens, std::size_t count, Grid shape) const {
        Tensor result{{extent(count), bundle.latent_channels, 2 * shape.rows, 2 * shape.columns}, {}};
        for (std::size_t i = 0; i < count; ++i) {
            Floats part;
            append_part(part, tokens, i, count);
            const Floats latents = unpack(part, bundle.latent_channels, shape);
            result.data.insert(result.data.end(), latents.begin(), latents.end());
        }
        return result;
    }

    // Calls the progress callback, in which previews are drawn of `destination`.
    void tell(const EditOptions& chosen, std::size_t step, std::size_t steps, const Tensor& latents,
              const std::function<Tensor()>& destination) {
        estimate = destination;
        const struct Ended {
            std::function<Tensor()>& estimate;
            ~Ended() { estimate = nullptr; }
        } ended{estimate};
        Progress progress{static_cast<int>(step), static_cast<int>(steps), latents.data.data(), {}};
        std::copy(latents.shape.begin(), latents.shape.end(), progress.extents.begin());
        if (!chosen.progress(progress)) throw Cancelled("the edit was cancelled");
    }

    std::vector<Picture> previews(int enlarge) const {
        if (!estimate) throw Error("there is a preview only while an edit runs: ask for it in its progress callback");
        if (enlarge < 1 || enlarge > max_enlarge)
            throw Error("a preview is enlarged by 1 to " + std::to_string(max_enlarge) + ", not " +
                        std::to_string(enlarge));
        const Tensor latents = estimate();
        const Size size{static_cast<int>(latents.shape[3]), static_cast<int>(latents.shape[2])};
        const auto count = static_cast<std::size_t>(latents.shape[0]);
        std::vector<Picture> result;
        for (std::size_t i = 0; i < count; ++i) {
            Floats part;
            append_part(part, latents.data, i, count);
            const Picture picture = draw_latents(bundle, part, size);
            result.push_back(resize(picture, {enlarge * size.width, enlarge * size.height}));
        }
        return result;
    }

    // The picture of row `index`, decoded alone: a batch takes more memory, not less time.
    Picture decode(const Tensor& latents, std::size_t index, Size size) {
        Floats part;
        append_part(part, latents.data, index, static_cast<std::size_t>(latents.shape[0]));
        std::vector<std::int64_t> shape = latents.shape;
        shape[0] = 1;
        const Tensor image = take(backend->run("vae_decoder", {{"latents", view(part, shape)}}), "vae_decoder", "image",
                                  {1, 3, size.height, size.width});
        return to_picture(image.data, size);
    }
};

Pipeline::Pipeline(const fs::path& bundle, const LoadOptions& options)
    : state(std::make_unique<State>(bundle, options)) {}
Pipeline::~Pipeline() = default;
Pipeline::Pipeline(Pipeline&&) noexcept = default;
Pipeline& Pipeline::operator=(Pipeline&&) noexcept = default;

Picture Pipeline::edit(const std::vector<Picture>& references, std::string_view prompt, const EditOptions& options) {
    return std::move(state->edit({{references, std::string(prompt)}}, 1, options)[0]);
}

std::vector<Picture> Pipeline::edit_all(const std::vector<Edit>& edits, int num_images, const EditOptions& options) {
    return state->edit(edits, num_images, options);
}

void Pipeline::load_loras(const std::vector<Lora>& loras) { state->loras = state->lora_cache.find(loras); }

std::vector<Picture> Pipeline::previews(int enlarge) const { return state->previews(enlarge); }

std::string Pipeline::choice() const { return state->opened.choice; }

void Pipeline::cancel() noexcept { state->backend->stop(); }

}  // namespace kontext
