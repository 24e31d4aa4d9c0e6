// The C API on top of the C++ API; no exception leaves it.
#include <algorithm>
#include <cstring>
#include <new>

#include "kontext/kontext.hpp"

struct kontext_pipeline {
    kontext::Pipeline pipeline;
};

namespace {

thread_local char last_error[2048] = "";

kontext_status failed(const char* text, kontext_status status = KONTEXT_ERROR) noexcept {
    std::strncpy(last_error, text, sizeof last_error - 1);
    std::replace(last_error, last_error + std::strlen(last_error), '\n', ' ');
    return status;
}

template <typename Work>
kontext_status guarded(Work work) noexcept {
    try {
        work();
        return KONTEXT_OK;
    } catch (const kontext::Cancelled& error) {
        return failed(error.what(), KONTEXT_CANCELLED);
    } catch (const std::bad_alloc&) {
        return failed("not enough memory");
    } catch (const std::exception& error) {
        return failed(error.what());
    } catch (...) {
        return failed("unknown error");
    }
}

void require(bool there, const char* what) {
    if (!there) throw kontext::Error(std::string(what) + " is NULL");
}

kontext::Picture picture_of(const kontext_image& image) {
    if (image.rgb == nullptr || image.width < 1 || image.height < 1) throw kontext::Error("a picture has no pixels");
    const std::size_t size =
        std::size_t{3} * static_cast<std::size_t>(image.width) * static_cast<std::size_t>(image.height);
    return {{image.width, image.height}, {image.rgb, image.rgb + size}};
}

kontext_image image_of(const kontext::Picture& picture) {
    auto* rgb = new std::uint8_t[picture.rgb.size()];
    std::copy(picture.rgb.begin(), picture.rgb.end(), rgb);
    return {picture.size.width, picture.size.height, rgb};
}

std::vector<kontext::Lora> loras_of(const kontext_lora* loras, std::size_t count) {
    require(loras != nullptr || count == 0, "loras");
    std::vector<kontext::Lora> result;
    for (std::size_t i = 0; i < count; ++i) {
        require(loras[i].path != nullptr, "path");
        result.push_back({loras[i].path, loras[i].weight});
    }
    return result;
}

kontext::EditOptions options_of(const kontext_edit_options& from) {
    kontext::EditOptions options;
    if (from.steps != 0) options.steps = from.steps;
    if (from.has_guidance != 0) options.guidance = from.guidance;
    options.seed = from.seed;
    if (from.width != 0 || from.height != 0) options.size = kontext::Size{from.width, from.height};
    if (from.reference_method != nullptr) options.reference_method = from.reference_method;
    if (from.reference_size != nullptr) options.reference_size = from.reference_size;
    if (from.mask != nullptr) options.mask = picture_of(*from.mask);
    options.mask_blur = from.mask_blur;
    if (from.strength != 0) options.strength = from.strength;
    if (from.init_image != nullptr) options.init_image = picture_of(*from.init_image);
    options.paste_back = from.paste_back != 0;
    if (from.negative_prompt != nullptr) options.negative_prompt = from.negative_prompt;
    if (from.true_cfg != 0) options.true_cfg = from.true_cfg;
    if (from.cfg_until != 0) options.cfg_until = from.cfg_until;
    if (from.loras != nullptr || from.lora_count != 0) options.loras = loras_of(from.loras, from.lora_count);
    if (from.progress != nullptr)
        options.progress = [call = from.progress, user = from.user](const kontext::Progress& at) {
            return call(user, at.step, at.steps, at.latents, at.extents.data()) == 0;
        };
    if (from.warning != nullptr)
        options.warning = [call = from.warning, user = from.user](const std::string& text) {
            call(user, text.c_str());
        };
    return options;
}

// Views of pictures in C's terms, which only read them.
std::vector<kontext_image> views_of(const std::vector<kontext::Picture>& pictures) {
    std::vector<kontext_image> result;
    for (const kontext::Picture& each : pictures)
        result.push_back({each.size.width, each.size.height, const_cast<std::uint8_t*>(each.rgb.data())});
    return result;
}

void check_answer(const char* reason) {
    if (reason != nullptr) throw kontext::Error(reason);
}

kontext::LoadOptions options_of(const kontext_load_options& from) {
    kontext::LoadOptions options;
    if (from.device != nullptr) options.device = from.device;
    if (from.provider != nullptr) options.provider = from.provider;
    if (from.compute != nullptr) options.compute = from.compute;
    options.threads = from.threads;
    if (from.low_memory != 0) options.low_memory = from.low_memory > 0;
    options.verify = from.verify != 0;
    if (from.require_digest != nullptr) options.require_digest = from.require_digest;
    options.allow_links = from.allow_links != 0;
    if (from.input_filter != nullptr)
        options.input_filter = [call = from.input_filter, user = from.user](
                                   const std::vector<kontext::Picture>& references, const std::string& prompt) {
            const std::vector<kontext_image> views = views_of(references);
            check_answer(call(user, views.data(), views.size(), prompt.c_str()));
        };
    if (from.output_filter != nullptr)
        options.output_filter = [call = from.output_filter, user = from.user](kontext::Picture picture) {
            kontext_image view{picture.size.width, picture.size.height, picture.rgb.data()};
            check_answer(call(user, &view));
            return picture;
        };
    return options;
}

std::vector<kontext::Picture> references_of(const kontext_image* images, std::size_t count) {
    require(images != nullptr || count == 0, "references");
    std::vector<kontext::Picture> references;
    for (std::size_t i = 0; i < count; ++i) references.push_back(picture_of(images[i]));
    return references;
}

}  // namespace

kontext_status kontext_load(const char* bundle, const kontext_load_options* options, kontext_pipeline** pipeline) {
    return guarded([&] {
        require(pipeline != nullptr, "pipeline");
        *pipeline = nullptr;
        require(bundle != nullptr, "bundle");
        const kontext::LoadOptions chosen = options != nullptr ? options_of(*options) : kontext::LoadOptions{};
        *pipeline = new kontext_pipeline{kontext::Pipeline(bundle, chosen)};
    });
}

void kontext_free(kontext_pipeline* pipeline) { delete pipeline; }

kontext_status kontext_load_loras(kontext_pipeline* pipeline, const kontext_lora* loras, size_t count) {
    return guarded([&] {
        require(pipeline != nullptr, "pipeline");
        pipeline->pipeline.load_loras(loras_of(loras, count));
    });
}

kontext_status kontext_edit(kontext_pipeline* pipeline, const char* prompt, const kontext_edit_options* options,
                            kontext_image* image) {
    return guarded([&] {
        require(image != nullptr, "image");
        *image = {};
        require(pipeline != nullptr, "pipeline");
        require(prompt != nullptr, "prompt");
        const kontext_edit_options chosen = options != nullptr ? *options : kontext_edit_options{};
        const auto references = references_of(chosen.references, chosen.reference_count);
        *image = image_of(pipeline->pipeline.edit(references, prompt, options_of(chosen)));
    });
}

kontext_status kontext_edit_all(kontext_pipeline* pipeline, const kontext_batch_entry* entries, size_t count,
                                int32_t num_images, const kontext_edit_options* options, kontext_image* images) {
    return guarded([&] {
        require(images != nullptr, "images");
        const std::size_t total = num_images > 0 ? count * static_cast<std::size_t>(num_images) : 0;
        std::fill_n(images, total, kontext_image{});
        require(pipeline != nullptr, "pipeline");
        require(entries != nullptr || count == 0, "entries");
        std::vector<kontext::Edit> edits;
        for (std::size_t i = 0; i < count; ++i) {
            require(entries[i].prompt != nullptr, "prompt");
            edits.push_back({references_of(entries[i].references, entries[i].reference_count), entries[i].prompt});
        }
        const kontext_edit_options chosen = options != nullptr ? *options : kontext_edit_options{};
        const auto pictures = pipeline->pipeline.edit_all(edits, num_images, options_of(chosen));
        try {
            std::transform(pictures.begin(), pictures.end(), images, image_of);
        } catch (const std::bad_alloc&) {
            for (std::size_t i = 0; i < total; ++i) kontext_image_free(&images[i]);
            throw;
        }
    });
}

kontext_status kontext_list_devices(const char* provider, kontext_device_found found, void* user) {
    return guarded([&] {
        require(found != nullptr, "found");
        const auto given = [](const std::string& text) { return text.empty() ? nullptr : text.c_str(); };
        for (const kontext::DeviceInfo& each : kontext::list_devices(provider != nullptr ? provider : ""))
            found(user, given(each.device), given(each.provider), each.description.c_str());
    });
}

kontext_status kontext_preview(kontext_pipeline* pipeline, size_t index, int32_t enlarge, kontext_image* image) {
    return guarded([&] {
        require(image != nullptr, "image");
        *image = {};
        require(pipeline != nullptr, "pipeline");
        const auto pictures = pipeline->pipeline.previews(enlarge);
        if (index >= pictures.size())
            throw kontext::Error("there is no picture " + std::to_string(index) + " of " +
                                 std::to_string(pictures.size()));
        *image = image_of(pictures[index]);
    });
}

void kontext_cancel(kontext_pipeline* pipeline) {
    if (pipeline != nullptr) pipeline->pipeline.cancel();
}

kontext_status kontext_image_read(const char* path, kontext_image* image) {
    return guarded([&] {
        require(image != nullptr, "image");
        *image = {};
        require(path != nullptr, "path");
        *image = image_of(kontext::read_picture(path));
    });
}

kontext_status kontext_mask_read(const char* path, kontext_warning warning, void* user, kontext_image* mask) {
    return guarded([&] {
        require(mask != nullptr, "mask");
        *mask = {};
        require(path != nullptr, "path");
        const auto warn = [&](const std::string& text) {
            if (warning != nullptr) warning(user, text.c_str());
        };
        *mask = image_of(kontext::read_mask(path, warn));
    });
}

kontext_status kontext_image_write(const kontext_image* image, const char* path) {
    return guarded([&] {
        require(image != nullptr, "image");
        require(path != nullptr, "path");
        kontext::write_picture(picture_of(*image), path);
    });
}

void kontext_image_free(kontext_image* image) {
    if (image == nullptr) return;
    delete[] image->rgb;
    *image = {};
}

const char* kontext_error(void) { return last_error; }
