// Edits one picture: my-editor BUNDLE IN PROMPT OUT. Run from the root of the repository, after `make sdk` and
// `kontext-export --fp8 -o my-bundle`:
//
//     cmake -S examples/cpp -B build/example -DONNXRUNTIME_ROOT=$PWD/build/onnxruntime-sdk
//     cmake --build build/example
//     build/example/my-editor my-bundle examples/pictures/recolour.png "turn the purple triangle pink" out.png
#include <kontext/kontext.hpp>

#include <iostream>

int main(int count, char** words) {
    if (count != 5) {
        std::cerr << "usage: my-editor BUNDLE IN PROMPT OUT\n";
        return 2;
    }
    try {
        kontext::Pipeline pipeline(words[1]);
        const auto picture = kontext::read_picture(words[2]);

        kontext::EditOptions options;
        options.seed = 0;
        options.progress = [](const kontext::Progress& at) {
            std::cerr << "step " << at.step << " of " << at.steps << '\r';
            return true;  // false stops the edit
        };
        const auto edited = pipeline.edit({picture}, words[3], options);

        kontext::write_picture(edited, words[4]);
        std::cerr << "\nwrote " << words[4] << '\n';
    } catch (const kontext::Error& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 2;
    }
}
