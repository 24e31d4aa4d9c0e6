// Repainting a picture, where a mask is white or all of it from a noised copy on: the same float32 numbers as the Python
// runtime's inpainting.py, which says how.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "references.hpp"
#include "sampling.hpp"

namespace kontext {

// What one picture repaints.
struct Repaint {
    Reference original;   // encoded at the output's size; it has no place
    const Picture* mask;  // grey, at the output's size, blurred; null: all of it is repainted
    bool paste_back;
};

// Throws Error for an option out of its range, or without the one that it needs.
void check_repaint(const EditOptions& options);

// Whether a picture is repainted at all.
bool repaints(const EditOptions& options);

// The mask of the options as grey, blurred; null if there is none.
std::unique_ptr<const Picture> prepared_mask(const EditOptions& options);

// Appends what the user should be warned of if `picture` is repainted by `mask` (which may be null) at this output's
// size.
void note_repaint(const Picture& picture, const Picture* mask, Size output, const SamplerSettings& settings,
                  std::vector<std::string>& notes);

// How many of the first steps `strength` leaves out; rounded as diffusers does it. Throws Error if none remains.
int skipped_steps(int steps, double strength);

// The latents of a batch of pictures that are repainted, as tokens [rows, tokens, channels].
struct Repainting {
    Floats original, noise, mask;  // the mask is 1 where a picture is repainted

    // Appends a row; `noise` is that of the row, of `grid` with `channels` latent channels.
    void add(const Repaint& repaint, const Floats& original, const Floats& noise, int channels, Grid grid,
             int downscale);

    // The pictures' latents as they are at a time: 1 is noise, 0 the picture.
    Floats noised(float time) const;

    // Puts the pictures' own latents of a time where the mask is black.
    void keep(float time, Floats& latents) const;
};

// `result`, or with paste_back the picture's own pixels where the mask is black, and a mixture where it is grey.
Picture pasted(const Repaint& repaint, Picture result);

}  // namespace kontext
