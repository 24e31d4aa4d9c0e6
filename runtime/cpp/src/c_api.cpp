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

kontext::EditOptions options_of(const kontext_edit_options& from) {
    kontext::EditOptions options;
    if (from.steps != 0) options.steps = from.steps;
    if (from.has_guidance != 0) options.guidance = from.guidance;
    options.seed = from.seed;
    if (from.width != 0 || from.height != 0) options.size = kontext::Size{from.width, from.height};
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

}  // namespace

kontext_status kontext_load(const char* bundle, const kontext_load_options* options, kontext_pipeline** pipeline) {
    return guarded([&] {
        require(pipeline != nullptr, "pipeline");
        *pipeline = nullptr;
        require(bundle != nullptr, "bundle");
        kontext::LoadOptions chosen;
        if (options != nullptr) {
            chosen.threads = options->threads;
            if (options->low_memory != 0) chosen.low_memory = options->low_memory > 0;
            chosen.verify = options->verify != 0;
        }
        *pipeline = new kontext_pipeline{kontext::Pipeline(bundle, chosen)};
    });
}

void kontext_free(kontext_pipeline* pipeline) { delete pipeline; }

kontext_status kontext_edit(kontext_pipeline* pipeline, const char* prompt, const kontext_edit_options* options,
                            kontext_image* image) {
    return guarded([&] {
        require(image != nullptr, "image");
        *image = {};
        require(pipeline != nullptr, "pipeline");
        require(prompt != nullptr, "prompt");
        const kontext_edit_options chosen = options != nullptr ? *options : kontext_edit_options{};
        require(chosen.references != nullptr || chosen.reference_count == 0, "references");
        std::vector<kontext::Picture> references;
        for (std::size_t i = 0; i < chosen.reference_count; ++i) references.push_back(picture_of(chosen.references[i]));
        *image = image_of(pipeline->pipeline.edit(references, prompt, options_of(chosen)));
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

kontext_status kontext_image_write(const kontext_image* image, const char* path) {
    return guarded([&] {
        require(image != nullptr, "image");
        require(path != nullptr, "path");
        kontext::write_png(picture_of(*image), path);
    });
}

void kontext_image_free(kontext_image* image) {
    if (image == nullptr) return;
    delete[] image->rgb;
    *image = {};
}

const char* kontext_error(void) { return last_error; }
