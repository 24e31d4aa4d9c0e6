#include "preview.hpp"

#include "resize.hpp"

namespace kontext {

Picture draw_latents(const Bundle& bundle, const std::vector<float>& latents, Size size) {
    if (!bundle.preview)
        throw Error(bundle.folder.string() +
                    " has no colours for previews: it was exported by an earlier version; export it again");
    const std::size_t count = static_cast<std::size_t>(size.width) * static_cast<std::size_t>(size.height);
    std::vector<float> colours;
    for (std::size_t colour = 0; colour < 3; ++colour)
        for (std::size_t i = 0; i < count; ++i) {
            float sum = 0;
            for (std::size_t channel = 0; channel < bundle.preview->factors.size(); ++channel)
                sum += latents[channel * count + i] * bundle.preview->factors[channel][colour];
            colours.push_back(sum + bundle.preview->bias[colour]);
        }
    return to_picture(colours, size);
}

}  // namespace kontext
